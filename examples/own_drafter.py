"""A drafter of your own: it proposes what followed the same text last time.

Run: python examples/own_drafter.py tcp://SERVER:5555 SERVER_KEY_FILE DEVICE_KEY_DIRECTORY
"""

import sys
from collections.abc import Iterator, Sequence

import sled


class MemoryDrafter:
    name = "memory"
    known: Sequence[int] = ()

    def start(self, sampling: sled.Sampling, num_prompt: int) -> None:
        """A new answer begins."""

    def draft(self, text: Sequence[int], limit: int) -> Iterator[sled.Proposal]:
        if list(self.known[: len(text)]) == list(text):
            for token in self.known[len(text) :][:limit]:
                yield sled.Proposal(token, confidence=0.95)


def main(server: str, server_key: str, keys: str) -> None:
    drafter = MemoryDrafter()
    with sled.Device(server, server_key=server_key, keys=keys, drafter=drafter) as device:
        for attempt in ("first", "second"):
            answer = device.generate("Why is the sky blue?", max_tokens=24, window=sled.Window(8)).answer()
            drafter.known = answer.prompt_tokens + answer.tokens
            print(f"{attempt} time: {len(answer.tokens)} tokens in {answer.stats.rounds} rounds")


if __name__ == "__main__":
    main(*sys.argv[1:])
