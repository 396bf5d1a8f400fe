"""Two devices answer at once in one asyncio program, and one of them gives up in time.

Run: python examples/async_device.py tcp://SERVER:5555 SERVER_KEY_FILE DEVICE_KEY_DIRECTORY
"""

import asyncio
import sys

import sled


async def ask(device: sled.AsyncDevice, question: str) -> None:
    async for token in device.generate(question, max_tokens=12):
        print(token.text, end="", flush=True)
    print()


async def main(server: str, server_key: str, keys: str) -> None:
    options = {"server_key": server_key, "keys": keys, "drafter": "ngram"}
    async with (
        await sled.AsyncDevice.open(server, **options) as one,
        await sled.AsyncDevice.open(server, **options) as two,
    ):
        await asyncio.gather(ask(one, "Why is the sky blue?"), ask(two, "What is the capital of France?"))
        try:
            async with asyncio.timeout(0.3):
                await one.generate("Tell me a very long story.", max_tokens=1000).answer()
        except TimeoutError:
            print("no time for a story; the device is free again")
        print((await one.generate("Say yes.", max_tokens=2).answer()).finish_reason)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
