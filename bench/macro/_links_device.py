"""The device of the link benchmark, in a process of its own: `sled.Device`s that answer one prompt at a time."""

from __future__ import annotations

import time
from typing import Any

from bench.macro.serving.worker import answer_lines
from sled.run.device import Device
from sled.window import Window

BURST_S = 0.002  # tokens of one verdict come closer than this, those of two do not


class Devices:
    """Devices by name, linked once and kept: what they learn they keep, in this process."""

    def __init__(self) -> None:
        self._devices: dict[str, Device] = {}

    def handle(self, message: dict[str, Any]) -> dict[str, Any]:
        """`connect` or `answer`."""
        do, name = message.pop("do"), message.pop("name")
        return self._connect(name, **message) if do == "connect" else self._answer(name, **message)

    def _connect(self, name: str, endpoint: str, server_key: str, keys: str, drafter: str) -> dict[str, Any]:
        self._devices[name] = Device(
            endpoint, server_key=server_key, keys=keys, drafter=drafter, threads=1, remember=False
        )
        return {}

    def _answer(self, name: str, prompt: str, max_tokens: int, window: int) -> dict[str, Any]:
        """One greedy answer; `window` below 0 is auto."""
        device = self._devices[name]
        stream = device.generate(prompt, max_tokens=max_tokens, window=Window.auto() if window < 0 else Window(window))
        began = time.perf_counter()
        times = [time.perf_counter() - began for _ in stream]
        answer = stream.answer()
        learned = device._learned
        bursts = [0, *(i for i in range(1, len(times)) if times[i] - times[i - 1] > BURST_S)]
        first = bursts[1] if len(bursts) > 1 else len(times)
        return {
            "prompt": answer.prompt_tokens,
            "tokens": answer.tokens,
            "wall_s": times[-1],
            "first_token_s": times[0],
            "paced_tokens": len(times) - first,  # behind the first verdict: opening and prefill are the same for all
            "paced_s": times[-1] - times[0],
            "bytes": answer.stats.bytes_sent + answer.stats.bytes_received,
            "rounds": answer.stats.rounds,
            "drafted": answer.stats.drafted,
            "accepted": answer.stats.accepted,
            "hoped": answer.stats.hoped_rounds,
            "dead": answer.stats.dead_rounds,
            "learned": {
                "draft_ms": round(1e3 * learned.draft_s, 2),
                "away_ms": [round(1e3 * learned.turnaround.of(length), 1) for length in range(17)],
            },
        }


if __name__ == "__main__":
    answer_lines(Devices().handle)
