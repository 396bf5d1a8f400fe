"""A fleet: its links, what it knows of the target's answers, and a measured run."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path

import msgspec

import edgebus
from edgebus import aio
from edgebus.payloads import decode
from sled import messages
from sled.drafters import Drafter
from sled.errors import ParameterError
from sled.messages import Described
from sled.swarm.account import Arrival, Asked, Record
from sled.swarm.drafts import ReplayedDrafts, SharedDrafts
from sled.swarm.guest import Drafts, Guest, Question
from sled.swarm.profiles import Profile, dealt
from sled.swarm.report import Report, Tried, summarise
from sled.types import Sampling

_Work = Coroutine[object, object, None]
MAX_DEVICES = 256
LEARNERS = 16
FAST = Profile(draft_tokens_per_s=1e6, acceptance=(1.0,), name="learner")


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a fleet does.

    Attributes:
        devices: how many.
        profiles: of the boards, dealt in turn.
        seconds: how long it is measured, once every device has a token (closed loop).
        answers: the run is over after so many, too; 0 is no limit.
        window: drafts per round at most; 0 has the server decode.
        rate: tokens per second promised to every session.
        max_tokens: of an answer.
        arrivals: new questions a second over the whole fleet, by chance (Poisson); 0 is a closed loop, in which every
            device asks again when its user has thought.
        think: share of the profiles' pauses that users make.
        seed: of errors, pauses and arrivals.
        timeout_s: for each request.
    """

    devices: int
    profiles: tuple[Profile, ...]
    seconds: float = 20.0
    answers: int = 0
    window: int = 4
    rate: float = 10.0
    max_tokens: int = 64
    sampling: Sampling = Sampling()
    arrivals: float = 0.0
    think: float = 1.0
    seed: int = 0
    timeout_s: float = 60.0

    def __post_init__(self) -> None:
        checks = {
            f"devices is {self.devices}, give 1 to {MAX_DEVICES}": 1 <= self.devices <= MAX_DEVICES,
            f"seconds is {self.seconds}, give more than 0 and at most 86400": 0 < self.seconds <= 86_400,
            f"window is {self.window}, give 0 to {messages.MAX_WINDOW}": 0 <= self.window <= messages.MAX_WINDOW,
            f"rate is {self.rate}, give more than 0": 0 < self.rate <= 1e6,
            f"max_tokens is {self.max_tokens}, give 2 to {messages.MAX_TOKENS}": 2
            <= self.max_tokens
            <= messages.MAX_TOKENS,
            f"arrivals is {self.arrivals}, give 0 or more": 0 <= self.arrivals <= 1e6,
        }
        for text, holds in checks.items():
            if not holds:
                raise ParameterError(text)


class Fleet:
    """Devices of one server; use as `async with await Fleet.connect(...)`.

    Args:
        links: the devices share them in turn.
        target: what the server said about its model.
        prompts: what is asked, in turn.
    """

    def __init__(
        self, nodes: list[aio.Node], links: list[aio.Link], target: Described, prompts: Sequence[str | list[int]]
    ) -> None:
        self.target, self.known = target, dict[int, list[int]]()
        self._nodes, self._links, self._prompts = nodes, links, list(prompts)
        self._stopped = asyncio.Event()

    @classmethod
    async def connect(
        cls,
        server: str,
        *,
        server_key: Sequence[str] | None,
        keys: Sequence[Path],
        num_links: int,
        prompts: Sequence[str | list[int]],
        timeout_s: float = 30.0,
    ) -> Fleet:
        """Link to the server; without keys in plaintext.

        Raises:
            edgebus.EdgebusError: it cannot be reached.
        """
        if not prompts:
            raise ParameterError("there is nothing to ask; give at least one prompt")
        nodes: list[aio.Node] = []
        links: list[aio.Link] = []
        try:
            for number in range(num_links):
                own = edgebus.load_keys(keys[number % len(keys)]) if keys else None
                nodes.append(aio.Node("sled-swarm", keys=own, insecure=own is None))
                links.append(await nodes[-1].connect(server, server_key=server_key, timeout_s=timeout_s))
            described = await links[0].request(messages.DESCRIBE, timeout_s=timeout_s)
            return cls(nodes, links, decode(Described, described.payload), prompts)
        except BaseException:
            for node in nodes:
                await node.close()
            raise

    async def __aenter__(self) -> Fleet:
        return self

    async def __aexit__(self, *exception: object) -> None:
        for node in self._nodes:
            await node.close()

    def stop(self) -> None:
        """End what runs now; what it has measured counts."""
        self._stopped.set()

    async def learn(self, plan: Plan, limit_s: float) -> int:
        """Have the target answer the prompts without drafts, in their order, as many as come in time.

        Returns:
            How many are known; only these are asked in a run.
        """
        todo = iter([number for number in range(len(self._prompts)) if number not in self.known])
        tried = Tried()

        async def work(number: int) -> None:
            guest = Guest(self._link(number), FAST, _NoDrafts(), window=0, timeout_s=plan.timeout_s, tried=tried)
            for prompt in todo:
                self.known[prompt] = await guest.answer(self._question(prompt, plan), lambda tokens: None)

        await self.until([work(number) for number in range(LEARNERS)], limit_s, asyncio.Event())
        return len(self.known)

    async def run(
        self, plan: Plan, *, drafter: Drafter | None = None, look: Callable[[Report], None] | None = None
    ) -> Report:
        """One measured run.

        Args:
            plan: what the fleet does; prompts that are not known are asked only if a drafter is given.
            drafter: a real one, shared, instead of known answers.
            look: called twice a second with what is measured so far.

        Raises:
            ParameterError: no answer is known to draft from.
            edgebus.EdgebusError: a device failed; the run is void.
        """
        return await _Run(self, plan, drafter).go(look)

    def _link(self, number: int) -> aio.Link:
        return self._links[number % len(self._links)]

    def _question(self, prompt: int, plan: Plan) -> Question:
        return Question(prompt, self._prompts[prompt], plan.sampling, plan.max_tokens, plan.rate)

    async def until(self, works: Sequence[_Work], limit_s: float, over: asyncio.Event) -> None:
        """Run until all have ended, the time is up, `over` is set, or `stop`; raises what one of them raised."""
        tasks = [asyncio.create_task(work) for work in works]
        ends = [asyncio.create_task(event.wait()) for event in (self._stopped, over)]
        until = time.monotonic() + limit_s
        try:
            left = set(tasks)
            while left and not any(end.done() for end in ends) and (wait_s := until - time.monotonic()) > 0:
                done, _ = await asyncio.wait({*left, *ends}, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
                for task in done & left:
                    task.result()
                left -= done
        finally:
            for task in (*ends, *tasks):
                task.cancel()
            await asyncio.gather(*ends, *tasks, return_exceptions=True)


class _NoDrafts:
    async def draft(self, question: Question, text: Sequence[int], done: int, limit: int) -> list[int]:
        return []


class _Run:
    """What one run needs while it lasts."""

    def __init__(self, fleet: Fleet, plan: Plan, drafter: Drafter | None) -> None:
        self._fleet, self._plan = fleet, plan
        self._profiles = dealt(plan.profiles, plan.devices)
        self._tried = {profile.name: Tried() for profile in plan.profiles}
        self._record = Record(plan.devices, [], [], 0.0)
        self._different = self._answers = 0
        self._known = fleet.known
        self._askable = sorted(self._known) if drafter is None else list(range(len(fleet._prompts)))
        if not self._askable:
            raise ParameterError("no answer is known to draft from; give the target more time to learn, or a drafter")
        self._next = 0
        self._waiting = set(range(plan.devices))
        self._all_running = asyncio.Event()
        self._began = time.perf_counter()
        self._ended, self._over = asyncio.Event(), asyncio.Event()
        self._questions: asyncio.Queue[float] = asyncio.Queue()
        self._rng = random.Random(plan.seed)  # noqa: S311 - a load, no secret
        shared = SharedDrafts(drafter) if drafter is not None else None
        self._guests = [self._guest(number, profile, shared) for number, profile in enumerate(self._profiles)]

    def _guest(self, number: int, profile: Profile, shared: Drafts | None) -> Guest:
        plan, fleet = self._plan, self._fleet
        seed = (plan.seed, number)
        drafts = shared or ReplayedDrafts(self._known, profile, vocab_size=fleet.target.vocab_size, seed=seed)
        tried = self._tried[profile.name]
        link = fleet._link(number)
        return Guest(link, profile, drafts, window=plan.window, timeout_s=plan.timeout_s, tried=tried)

    async def go(self, look: Callable[[Report], None] | None) -> Report:
        plan = self._plan
        sent = self._bytes()
        if plan.arrivals:
            self._all_running.set()
            works = [self._serve(number) for number in range(plan.devices)]
            works.append(self._arrive())
        else:
            works = [self._loop(number) for number in range(plan.devices)]
        ticker = asyncio.create_task(self._tick(look, sent)) if look is not None else None
        try:
            await self._fleet.until([*works, self._until_over()], 2 * (plan.seconds + plan.timeout_s), self._over)
        finally:
            if ticker is not None:
                ticker.cancel()
                await asyncio.gather(ticker, return_exceptions=True)
        return self._report(sent)

    async def _until_over(self) -> None:
        plan = self._plan
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(plan.seconds + plan.timeout_s):
                await self._all_running.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(plan.seconds):
                await self._ended.wait()
        self._over.set()

    async def _loop(self, number: int) -> None:
        """Closed loop: ask, read to the end, think."""
        think_s = self._profiles[number].think_s * self._plan.think
        rng = random.Random(f"{self._plan.seed} {number}")  # noqa: S311
        answer = 0
        while not self._ended.is_set():
            await self._ask(number, answer, time.perf_counter())
            answer += 1
            if think_s:
                await asyncio.sleep(rng.expovariate(1.0 / think_s))

    async def _serve(self, number: int) -> None:
        """A device that takes the question that has waited longest."""
        answer = 0
        while True:
            await self._ask(number, answer, await self._questions.get())
            answer += 1

    async def _arrive(self) -> None:
        while True:
            await asyncio.sleep(self._rng.expovariate(self._plan.arrivals))
            self._questions.put_nowait(time.perf_counter())

    async def _ask(self, number: int, answer: int, came_at: float) -> None:
        prompt = self._askable[self._next % len(self._askable)]
        self._next += 1
        record, began = self._record, self._began
        record.asked.append(Asked(number, answer, came_at - began))

        def arrived(tokens: int) -> None:
            record.arrivals.append(Arrival(number, answer, time.perf_counter() - began, tokens))
            self._waiting.discard(number)
            if not self._waiting:
                self._all_running.set()

        told = await self._guests[number].answer(self._fleet._question(prompt, self._plan), arrived)
        self._answers += 1
        if told != self._known.setdefault(prompt, told):
            self._different += 1
        if self._answers == self._plan.answers:
            self._ended.set()

    async def _tick(self, look: Callable[[Report], None] | None, sent: int) -> None:
        assert look is not None
        while True:
            await asyncio.sleep(0.5)
            look(self._report(sent))

    def _report(self, sent: int) -> Report:
        self._record.end_s = time.perf_counter() - self._began
        return summarise(
            self._record,
            promised=self._plan.rate,
            profiles=[profile.name for profile in self._profiles],
            tried=self._tried,
            num_bytes=self._bytes() - sent,
            answers=self._answers,
            different=self._different,
            waiting=self._questions.qsize(),
        )

    def _bytes(self) -> int:
        stats = [link.stats() for link in self._fleet._links]
        return sum(each.bytes_sent + each.bytes_received for each in stats)
