"""Two nodes in one asyncio program, over tcp with CURVE: requests at once, a stream of parts, a task that is cancelled.

Run: python examples/echo_asyncio.py
"""

import asyncio
import tempfile
from pathlib import Path

import edgebus
from edgebus import aio


async def serve(inbox: aio.Inbox) -> None:
    async for request in inbox:
        if request.is_stream:
            for number in range(request.from_pos, 5):
                await request.push(b"part %d" % number)  # waits while the device does not read
        await request.reply(request.payload.upper())


async def talk(link: aio.Link) -> None:
    replies = await asyncio.gather(*(link.request("shout", word) for word in (b"all", b"at", b"once")))
    print(b" ".join(reply.payload for reply in replies).decode())

    async for part in link.stream("shout", b"the end", from_pos=3):
        print(part.pos, part.payload.decode())

    try:
        await asyncio.wait_for(link.request("nobody answers this"), 0.1)
    except TimeoutError:
        print("cancelled, here and over there")


async def main(directory: Path) -> None:
    server_keys = edgebus.generate_keys(directory / "server")
    device_keys = edgebus.generate_keys(directory / "device")
    edgebus.add_to_allow_list(directory / "server" / "allowed_keys", directory / "device" / "node.key")
    allow = edgebus.AllowList.from_file(directory / "server" / "allowed_keys")

    async with aio.Node("server", keys=server_keys, allow=allow) as server:
        endpoint = server.bind("tcp://127.0.0.1:0")
        async with server.serve("shout") as inbox, server.serve("nobody answers this"):
            serving = asyncio.create_task(serve(inbox))
            async with aio.Node("device", keys=device_keys) as device:
                await talk(await device.connect(endpoint, server_keys.public))
        await serving


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(Path(folder)))
