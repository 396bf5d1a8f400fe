"""A drafter of your own: it proposes the continuation the same text had last time.

Run: python examples/own_drafter.py tcp://SERVER:5555 SERVER_KEY_FILE DEVICE_KEY_DIRECTORY
"""

import sys
from collections.abc import Sequence

import sled


class MemoryDrafter:
    """Remembers answers; a question asked again is drafted from the first answer."""

    name = "memory"

    def __init__(self) -> None:
        self._texts: list[list[int]] = []

    def start(self, sampling: sled.Sampling) -> None:
        """Nothing to prepare."""

    def draft(self, prefix: Sequence[int], limit: int, window: sled.Window) -> list[int]:
        """What followed this prefix in a text we remember."""
        for text in reversed(self._texts):
            if text[: len(prefix)] == list(prefix):
                return text[len(prefix) :][:limit]
        return []

    def remember(self, answer: sled.Answer) -> None:
        self._texts.append(answer.prompt_tokens + answer.tokens)


def main(server: str, server_key: str, keys: str) -> None:
    drafter = MemoryDrafter()
    with sled.Device(server, server_key=server_key, keys=keys, drafter=drafter) as device:
        for attempt in ("first", "second"):
            answer = device.generate("Why is the sky blue?", max_tokens=24, window=sled.Window(8)).answer()
            drafter.remember(answer)
            print(f"{attempt} time: {len(answer.tokens)} tokens in {answer.stats.rounds} rounds")


if __name__ == "__main__":
    main(*sys.argv[1:])
