"""The load on `sled serve`: devices with a key and a link each on one event loop, over loopback with CURVE.

It speaks the protocol itself (docs/spec/sled-protocol.md), since a drafter that knows the answer has no use for a
device's shell and its text.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from typing import Any

import edgebus
from bench.macro.serving.account import Record
from bench.macro.serving.cells import ACCEPTANCE, MAX_TOKENS, SEED
from bench.macro.serving.loop import Arrived, drive
from bench.macro.serving.replay import Replay
from bench.macro.serving.worker import answer_lines
from edgebus import aio
from edgebus.payloads import decode, encode
from sled import messages
from sled.history import History
from sled.messages import Close, Decode, Described, Open, Opened, Verdict, Verify
from sled.types import Sampling, Terms

TIMEOUT_S = 60.0
BUSY_WAIT_S = 0.05


class Load:
    """Devices of one server, and what they know.

    Args:
        endpoint: of the server.
        server_key: file with its public key.
        keys: key directories, one for every session.
        prompts: token ids.
    """

    def __init__(self, endpoint: str, server_key: str, keys: list[str], prompts: list[list[int]]) -> None:
        self._endpoint, self._keys, self._prompts = endpoint, keys, prompts
        self._server_key = edgebus.read_public_key(server_key)
        self._nodes: list[aio.Node] = []
        self._links: list[aio.Link] = []
        self._replay = Replay({}, acceptance=0.0, vocab_size=2, seed=0)
        self._window, self._obey, self._streams = 0, False, True
        self._counts = {"rounds": 0, "drafted": 0, "accepted": 0, "batches": 0, "streamed": 0}

    async def connect(self) -> Described:
        """Link every device; returns what the target is."""
        for key in self._keys:
            node = aio.Node(name="load", keys=edgebus.load_keys(key))
            self._nodes.append(node)
            self._links.append(await node.connect(self._endpoint, server_key=self._server_key, timeout_s=TIMEOUT_S))
        self._target = decode(Described, (await self._links[0].request(messages.DESCRIBE)).payload)
        return self._target

    async def learn(self, wanted: list[int], sessions: int, limit_s: float) -> dict[int, list[int]]:
        """Whole answers to as many of these prompts as come in time, in their order."""
        self._window, todo, learnt = 0, iter(wanted), dict[int, list[int]]()

        async def work(session: int) -> None:
            for prompt in todo:
                learnt[prompt] = await self._answer(session, prompt, MAX_TOKENS, lambda tokens: None)

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s), asyncio.TaskGroup() as group:
                for session in range(sessions):
                    group.create_task(work(session))
        return learnt

    async def turn(
        self, answers: dict[int, list[int]], *, window: int, obey: bool = False, **turn: Any
    ) -> dict[str, Any]:
        """One turn of the closed loop.

        Args:
            answers: known ones, for drafts; with a window only prompts whose answer is known are asked.
            window: drafts a round.
            obey: draft no more than the server's window limit.
            turn: see `drive`.
        """
        self._window, self._obey = window, obey
        self._counts = dict.fromkeys(self._counts, 0)
        vocab = self._target.vocab_size
        self._replay = Replay(answers, acceptance=ACCEPTANCE, vocab_size=vocab, seed=SEED)
        num_prompts = len(self._prompts)
        if window:
            num_prompts = next(number for number in range(num_prompts + 1) if number not in answers)
        record = await drive(self._answer, num_prompts=num_prompts, **turn)
        record.notes = self._notes(record)
        return {"record": record}

    async def _answer(self, session: int, prompt: int, wanted: int, arrived: Arrived) -> list[int]:
        link = self._links[session]
        name = secrets.token_bytes(8)
        opened = await _open(link, Open(name, Sampling(), self._prompts[prompt], terms=Terms(max_tokens=wanted)))
        text = _Text(name, opened, wanted, arrived)
        try:
            while not text.over:
                limit = min(self._window, text.limit) if self._obey else self._window
                if limit == 0 and self._streams:
                    self._streams = await self._stream(link, text)
                    continue
                draft = self._replay.draft(prompt, len(text.answer), min(limit, text.left - 1))
                await self._round(link, text, draft)
        finally:
            with contextlib.suppress(edgebus.EdgebusError):  # known to have ended, or the turn is over
                pending = await link.send_request(messages.CLOSE, encode(Close(name)), timeout_s=TIMEOUT_S)
                del pending
        return text.answer

    async def _round(self, link: aio.Link, text: _Text, draft: list[int]) -> None:
        base = len(text.history)
        request = Verify(text.session, base, text.history.digest(base), draft)
        reply = await link.request(messages.VERIFY, encode(request), timeout_s=TIMEOUT_S)
        verdict = decode(Verdict, reply.payload)
        text.take(verdict)
        self._counts["rounds"] += 1
        self._counts["drafted"] += len(draft)
        self._counts["accepted"] += verdict.accepted
        self._counts["batches"] += verdict.batch

    async def _stream(self, link: aio.Link, text: _Text) -> bool:
        """Have the server decode; returns False if it does not know how."""
        base = len(text.history)
        request = Decode(text.session, base, text.history.digest(base), text.left)
        stream = link.stream(messages.DECODE, encode(request), timeout_s=TIMEOUT_S)
        async with stream:
            try:
                async for part in stream:
                    self._counts["streamed"] += text.take(decode(Verdict, part.payload))
                last = (await stream.result()).payload
            except edgebus.Refused as refused:
                if refused.code in ("no_such_service", "unknown_service", "invalid") and not self._counts["streamed"]:
                    return False
                raise
            if last:
                self._counts["streamed"] += text.take(decode(Verdict, last))
        return True

    def _notes(self, record: Record) -> dict[str, Any]:
        counts = self._counts
        tokens = sum(arrival.tokens for arrival in record.arrivals)
        return {
            "decode": "stream" if counts["streamed"] else "rounds",
            "acceptance": round(counts["accepted"] / counts["drafted"], 4) if counts["drafted"] else None,
            "drafts_a_round": round(counts["drafted"] / counts["rounds"], 3) if counts["rounds"] else 0.0,
            "streamed_share": round(counts["streamed"] / tokens, 4) if tokens else 0.0,
            "rounds_a_forward": round(counts["batches"] / counts["rounds"], 2) if counts["rounds"] else None,
        }


class _Text:
    """One session's text as its device knows it."""

    def __init__(self, session: bytes, opened: Opened, wanted: int, arrived: Arrived) -> None:
        self.session, self.history = session, History(opened.prompt_tokens)
        self.limit, self.over = opened.window_limit, False
        self.answer: list[int] = []
        self._wanted, self._arrived = wanted, arrived

    @property
    def left(self) -> int:
        return self._wanted - len(self.answer)

    def take(self, verdict: Verdict) -> int:
        """Commit what the server decided; returns how many tokens that is."""
        assert verdict.base == len(self.history), f"verdict for {verdict.base}, we stand at {len(self.history)}"
        tokens = verdict.tokens[: self.left]
        self.history.extend(tokens)
        self.answer += tokens
        self.limit = verdict.window_limit
        self.over = bool(verdict.finish) or self.left <= 0
        if tokens:
            self._arrived(len(tokens))
        return len(tokens)


async def _open(link: aio.Link, message: Open) -> Opened:
    """Open a session; a server whose last sessions are only just closing is asked again."""
    for _ in range(100):
        try:
            reply = await link.request(messages.OPEN, encode(message), timeout_s=TIMEOUT_S)
        except edgebus.Refused as refused:
            if refused.code != "busy":
                raise
            await asyncio.sleep(BUSY_WAIT_S)
        else:
            return decode(Opened, reply.payload)
    raise TimeoutError("the server was busy all the time; raise its limit of sessions")


class _Handler:
    """What the benchmark may ask of this process."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._load: Load | None = None

    def __call__(self, message: dict[str, Any]) -> Any:
        return self._loop.run_until_complete(getattr(self, message.pop("do"))(**message))

    async def connect(self, **where: Any) -> dict[str, Any]:
        self._load = Load(**where)
        target = await self._load.connect()
        return {"target_id": target.target_id.hex(), "name": target.name, "dtype": target.dtype}

    async def learn(self, **what: Any) -> dict[str, Any]:
        assert self._load is not None
        learnt = await self._load.learn(**what)
        return {"answers": {str(prompt): answer for prompt, answer in learnt.items()}}

    async def turn(self, answers: dict[str, list[int]], **turn: Any) -> Any:
        assert self._load is not None
        return await self._load.turn({int(prompt): answer for prompt, answer in answers.items()}, **turn)


if __name__ == "__main__":
    answer_lines(_Handler(asyncio.new_event_loop()))
