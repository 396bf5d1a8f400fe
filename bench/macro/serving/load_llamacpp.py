"""The load on llama.cpp's server: one HTTP connection for each answer, tokens as they come (server-sent events)."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import msgspec

from bench.macro.serving.loop import Arrived, drive
from bench.macro.serving.worker import answer_lines


class Load:
    """Sessions of one server.

    Args:
        port: of the server on loopback.
        prompts: token ids.
    """

    def __init__(self, port: int, prompts: list[list[int]]) -> None:
        self._port, self._prompts = port, prompts

    async def answer(self, session: int, prompt: int, wanted: int, arrived: Arrived) -> list[int]:
        """One answer.

        Raises:
            RuntimeError: the server says no, or counted other tokens than we.
        """
        body = {
            "prompt": self._prompts[prompt],
            "n_predict": wanted,
            "temperature": 0,
            "samplers": ["temperature"],
            "stream": True,
            "return_tokens": True,
        }
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 20)
        try:
            data = msgspec.json.encode(body)
            head = ("POST /completion HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(data)}", "Connection: close")
            writer.write("\r\n".join((*head, "\r\n")).encode() + data)
            answer: list[int] = []
            while line := await reader.readline():
                if line.startswith(b"data: {"):
                    event = msgspec.json.decode(line[6:], type=dict[str, Any])
                    if event.get("error"):
                        raise RuntimeError(f"llama.cpp: {event['error']}")
                    if event.get("stop"):
                        missing = event["tokens_predicted"] - len(answer)
                        if not 0 <= missing <= 1:  # the stop token is counted and not shown
                            raise RuntimeError(f"llama.cpp counts {event['tokens_predicted']}, came {len(answer)}")
                        if missing:
                            arrived(missing)
                        return answer
                    if tokens := event["tokens"]:
                        answer += tokens
                        arrived(len(tokens))
                elif line.startswith(b"HTTP/1.1 ") and b" 200 " not in line:
                    raise RuntimeError(f"llama.cpp answers {line.decode().strip()}")
            raise RuntimeError("llama.cpp closed the connection before the end of an answer")
        finally:
            writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()


class _Handler:
    """What the benchmark may ask of this process."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._load: Load | None = None

    def __call__(self, message: dict[str, Any]) -> Any:
        return self._loop.run_until_complete(getattr(self, message.pop("do"))(**message))

    async def connect(self, **where: Any) -> dict[str, Any]:
        self._load = Load(**where)
        return {}

    async def turn(self, **turn: Any) -> dict[str, Any]:
        assert self._load is not None
        return {"record": await drive(self._load.answer, num_prompts=len(self._load._prompts), **turn)}


if __name__ == "__main__":
    answer_lines(_Handler(asyncio.new_event_loop()))
