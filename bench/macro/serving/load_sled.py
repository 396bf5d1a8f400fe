"""The load on `sled serve`: devices with a key and a link each on one event loop, over loopback with CURVE.

They are the devices of `sled swarm` (sled/swarm/guest.py) without a board's pace: a drafter that knows the answer has
no use for a device's shell and its text.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import edgebus
from bench.macro.serving.cells import ACCEPTANCE, MAX_TOKENS, SEED
from bench.macro.serving.loop import Arrived, drive
from bench.macro.serving.worker import answer_lines
from edgebus import aio
from edgebus.payloads import decode
from sled import messages
from sled.messages import Described
from sled.swarm.account import Record
from sled.swarm.drafts import ReplayedDrafts
from sled.swarm.guest import Guest, Question
from sled.swarm.profiles import Profile
from sled.swarm.report import Tried
from sled.types import Sampling

TIMEOUT_S = 60.0
UNPACED = Profile(name="unpaced", draft_tokens_per_s=1e6, acceptance=(ACCEPTANCE,))


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
        self._guests: list[Guest] = []
        self._tried = Tried()

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
        self._make_guests({}, window=0, obey=True)
        todo, learnt = iter(wanted), dict[int, list[int]]()

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
        self._make_guests(answers, window=window, obey=obey)
        num_prompts = len(self._prompts)
        if window:
            num_prompts = next(number for number in range(num_prompts + 1) if number not in answers)
        record = await drive(self._answer, num_prompts=num_prompts, **turn)
        record.notes = self._notes(record)
        return {"record": record}

    def _make_guests(self, answers: dict[int, list[int]], *, window: int, obey: bool) -> None:
        self._tried = Tried()
        drafts = ReplayedDrafts(answers, UNPACED, vocab_size=self._target.vocab_size, seed=(SEED,))
        self._guests = [
            Guest(link, UNPACED, drafts, window=window, timeout_s=TIMEOUT_S, tried=self._tried, obey=obey)
            for link in self._links
        ]

    async def _answer(self, session: int, prompt: int, wanted: int, arrived: Arrived) -> list[int]:
        question = Question(prompt, self._prompts[prompt], Sampling(), wanted, 0.0)
        return await self._guests[session].answer(question, arrived)

    def _notes(self, record: Record) -> dict[str, Any]:
        tried = self._tried
        tokens = sum(arrival.tokens for arrival in record.arrivals)
        return {
            "decode": "stream" if tried.streamed else "rounds",
            "acceptance": round(tried.accepted / tried.drafted, 4) if tried.drafted else None,
            "drafts_a_round": round(tried.drafted / tried.rounds, 3) if tried.rounds else 0.0,
            "streamed_share": round(tried.streamed / tokens, 4) if tokens else 0.0,
            "rounds_a_forward": round(tried.batches / tried.rounds, 2) if tried.rounds else None,
        }


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
