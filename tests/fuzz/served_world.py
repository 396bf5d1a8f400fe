"""A server of sled under attack: devices ask anything in any order; another one's answer must come out as it should.

`attack(data)` plays a script made of fuzz input and raises if an exception escapes that is no refusal, a bound is
passed, somebody is answered twice, pages are lost, or the honest device gets another answer than plain decoding gives.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from edgebus.payloads import Payload, decode, encode
from sled.acceptance import Decision
from sled.history import History
from sled.messages import Close, Decode, Open, Verdict, Verify
from sled.server import Answer, Refusal, Server, ServerLimits
from sled.server.session import Step
from sled.testing import ToyTarget
from sled.types import Sampling, SparseLaw, Terms
from tests.fuzz.source import Source, join_frames

LIMITS = ServerLimits(
    max_sessions=5,
    max_sessions_per_owner=3,
    max_waiting=4,
    batch_tokens=24,
    prefill_beside_rounds=8,
    rejected_burst=30,
    idle_s=20.0,
)
VOCAB, PAGES = 20, 20
SESSIONS = 8  # more than there may be, of one owner and of all
OWNERS = ("eve", "mallory")
KINDS: tuple[type[Payload], ...] = (Open, Verify, Decode, Close)
HONEST, PROMPT = Sampling(temperature=0.9, seed=7), [3, 1, 4, 1, 5]


class ServedWorld:
    """The machine, its target, and what was told to whom."""

    def __init__(self) -> None:
        self.target = ToyTarget(VOCAB, max_positions=64, max_window=4, page_tokens=4, num_pages=PAGES)
        self.server: Server[str] = Server(self.target.shape, LIMITS)
        self.now, self.num_tickets = 0.0, 0
        self.texts: dict[bytes, list[int]] = {}  # of sessions, as far as their devices were told
        self.ended: Counter[str] = Counter()
        self.waiting: list[str] = []
        self.told: dict[str, Verdict] = {}

    # -- what devices say --------------------------------------------------------------------------

    def say(self, owner: str, message: Payload) -> None:
        """A message, as the server's shell hands it on."""
        self.num_tickets += 1
        ticket = f"{owner} {self.num_tickets}"
        try:
            match message:
                case Open():
                    prompt = message.prompt
                    tokens = self.target.codec.encode(prompt, chat=message.chat) if isinstance(prompt, str) else prompt
                    opened = self.server.open(owner, message, tokens, now=self.now)
                    num_prompt = len(tokens)
                    assert opened.committed >= num_prompt > 0
                    self.texts[message.session] = [*tokens, *message.answer]
                case Verify():
                    self._asked(ticket, self.server.verify(owner, message, ticket, now=self.now))
                case Decode():
                    self.server.decode(owner, message, ticket, now=self.now)
                    self._asked(ticket, None)
                case Close():
                    for each in self.server.close(owner, message.session):
                        self._end(each)
        except (Refusal, ValueError):  # the shell refuses both
            pass
        self.hear(self.server.take_answers())

    def _asked(self, ticket: str, verdict: Verdict | None) -> None:
        if verdict is None:
            self.waiting.append(ticket)
        else:
            self._take(ticket, verdict)

    def _take(self, ticket: str, verdict: Verdict) -> None:
        assert all(0 <= token < VOCAB for token in verdict.tokens)
        assert 0 <= verdict.accepted <= len(verdict.tokens)
        self.told[ticket] = verdict
        for text in self.texts.values():
            if len(text) == verdict.base:
                text.extend(verdict.tokens)  # right for one of them, nonsense for the others

    def _end(self, ticket: str) -> None:
        self.ended[ticket] += 1
        assert self.ended[ticket] == 1, f"{ticket} has two ends"

    # -- what the server does ----------------------------------------------------------------------

    def hear(self, answers: list[Answer[str]]) -> None:
        """Answers on their way out."""
        for answer in answers:
            for ticket in answer.tickets:
                assert not self.ended[ticket], f"{ticket} is told something after its end"
                if answer.refusal is None:
                    self._take(ticket, answer.verdict)
                if answer.last or answer.refusal is not None:
                    self._end(ticket)

    def forward(self, luck: int) -> bool:
        """One forward; it fails, or gives what is no number, by the luck. False if there is nothing to compute."""
        step = self.server.next_step(now=self.now)
        if step is None:
            return False
        for part in self.server.isolate(step) if luck in (1, 2) else [step]:
            self._compute(part, luck)
        return True

    def _compute(self, step: Step[str], luck: int) -> None:
        if luck == 1:
            for ticket in self.server.fail(step):
                self._end(ticket)
            return
        decisions = self.target.verify(step.chunks, step.rounds)
        if luck == 2:
            decisions = [Decision(0, 0, finite=False) for _ in decisions]
        self.hear(self.server.complete(step, decisions, now=self.now, took_s=0.01))

    def check(self) -> None:
        """Bounds, and pages that are neither lost nor given twice."""
        server, gauges = self.server, self.server.gauges()
        assert len(server.sessions) <= LIMITS.max_sessions
        owners = Counter(session.owner for session in server.sessions.values())
        assert all(count <= LIMITS.max_sessions_per_owner for count in owners.values())
        assert gauges.waiting_rounds + gauges.streams <= LIMITS.max_waiting + 1
        assert gauges.pages_held + gauges.pages_cached + gauges.pages_free == PAGES
        assert gauges.queued_tokens >= 0

    def check_honest(self) -> None:
        """A device that keeps to the protocol gets the answer that plain decoding gives."""
        for owner in OWNERS:
            for session in [each.id for each in self.server.sessions.values() if each.owner == owner]:
                self.say(owner, Close(session))
        text, session = list(PROMPT), b"honest.."
        self.say("honest", Open(session, HONEST, PROMPT))
        while len(text) < len(PROMPT) + 6 and (text[-1] != 0 or len(text) == len(PROMPT)):
            before = len(text)
            self.say("honest", Verify(session, before, History(text).digest(before), [2, 3]))
            ticket = f"honest {self.num_tickets}"
            for _ in range(100):
                if ticket in self.told:
                    break
                self.now += 1.0  # whatever was put off has come to its time
                assert self.forward(0), "the honest device waits, and nothing is computed"
            verdict = self.told[ticket]
            assert verdict.base == before
            assert verdict.tokens
            text += verdict.tokens
        right = self.target.plain_answer(PROMPT, HONEST, len(text) - len(PROMPT))
        assert text[len(PROMPT) :] == right, "the honest device was told another answer"

    def close(self) -> None:
        """Everything ends: everybody who waits is told, and every page is free."""
        for ticket in self.server.give_up():
            self._end(ticket)
        self.hear(self.server.take_answers())
        gauges = self.server.gauges()
        assert (gauges.sessions, gauges.waiting_rounds, gauges.streams, gauges.pages_held) == (0, 0, 0, 0)


def attack(data: bytes) -> None:
    """Play a script; see the module."""
    source, world = Source(data), ServedWorld()
    for _ in range(60):
        if not source:
            break
        _step(world, source)
        world.check()
    world.check_honest()
    world.check()
    world.close()


def _step(world: ServedWorld, source: Source) -> None:
    owner = OWNERS[source.below(len(OWNERS))]
    match source.below(16):
        case 0 | 1:
            _raw(world, owner, source)
        case 2 | 3:
            world.say(owner, _open(source))
        case 4 | 5 | 6:
            world.say(owner, _round(world, source))
        case 7:
            base, text = _where(world, source)
            message = Decode(_session(source), base, History(text).digest(len(text)), 1 + source.below(40))
            world.say(owner, message)
        case 8:
            world.say(owner, Close(_session(source)))
        case 9:
            world.now += (0.001, 0.1, 1.0, 30.0)[source.below(4)]
            world.server.expire(now=world.now)
        case 10:
            gone = {ticket for ticket in world.waiting if source.below(2)}
            world.server.withdraw(gone.__contains__)
        case 11 if world.waiting:
            ticket = world.waiting[source.below(min(256, len(world.waiting)))]
            (world.server.pause, world.server.resume)[source.below(2)](ticket)
        case _:
            world.forward(source.below(6))


def _raw(world: ServedWorld, owner: str, source: Source) -> None:
    """Bytes as they come, mostly a message with a few of them changed."""
    kind = KINDS[source.below(len(KINDS))]
    raw = bytearray(source.blob())
    if source.below(4):
        raw = bytearray(_SAID[kind])
        for _ in range(source.below(4)):
            raw[source.below(min(256, len(raw)))] = source.below(256)
    try:
        message = decode(kind, bytes(raw))
    except ValueError:
        return
    if isinstance(message, Open) and message.sampling.constraint is not None:
        return  # another machine's
    world.say(owner, message)


def _session(source: Source) -> bytes:
    return bytes([source.below(SESSIONS)]) * 8


def _where(world: ServedWorld, source: Source) -> tuple[int, list[int]]:
    """A length, mostly that of a text somebody was told, and that text."""
    texts = list(world.texts.values()) or [[1]]
    text = texts[source.below(len(texts))]
    off = (0, 0, 0, 0, 1, 5)[source.below(6)]
    return len(text) + off, text


def _open(source: Source) -> Open:
    prompt: str | list[int] = [1 + source.below(VOCAB + 1) for _ in range(source.below(70))]
    if source.below(4) == 3:
        prompt = "text" * source.below(20)
    answer = [1 + source.below(VOCAB - 1) for _ in range(source.below(4))] if source.below(3) == 2 else []
    rule = "rejection" if source.below(4) == 3 else "coupled"
    sampling = Sampling(temperature=(0.0, 0.9)[source.below(2)], seed=source.below(3), rule=rule)  # type: ignore[arg-type]
    terms = Terms(source.below(40), ("<3>",) * source.below(2), source.below(4) - 1, float(source.below(3)) * 100)
    return Open(_session(source), sampling, prompt, False, answer, b"", terms)


def _round(world: ServedWorld, source: Source) -> Verify:
    base, text = _where(world, source)
    draft = [source.below(VOCAB + 1) for _ in range(source.below(6))]
    law = None
    if source.below(4) == 3:
        ids = b"".join(token.to_bytes(4, "little") for token in draft)
        law = SparseLaw([1] * len(draft), ids, (b"\0\0\x80?" * len(draft))[: len(ids) - source.below(2)])
    return Verify(_session(source), base, History(text).digest(len(text)), draft, law)


_SAID: dict[type[Payload], bytes] = {
    Open: encode(Open(bytes(8), HONEST, PROMPT)),
    Verify: encode(Verify(bytes(8), 5, History(PROMPT).digest(5), [1, 2], SparseLaw([1, 1], bytes(8), bytes(8)))),
    Decode: encode(Decode(bytes(8), 5, History(PROMPT).digest(5), 9)),
    Close: encode(Close(bytes(8))),
}


def seeds() -> Iterator[bytes]:
    """Scripts with openings, rounds and forwards in them."""
    for first in range(6):
        yield bytes((first + 7 * n + n // 5) % 256 for n in range(160))
    openings = [bytes([n // 4, 2, 5, 1, 2, 3, 4, 5, 0, 0, 0, 0, 0, 30, 0, 0, 0, n]) for n in range(SESSIONS)]
    opening = openings[0]
    asking = bytes([0, 4, 0, 0, 2, 1, 2, 0, 0, 0, 15, 0, 0, 15, 0])
    yield opening + asking * 6
    yield b"".join(openings) + asking * 6
    yield join_frames([opening, asking])
