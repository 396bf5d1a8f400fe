"""Devices, two servers and misfortune of every kind, drawn from a seed."""

from __future__ import annotations

import random

from sled.acceptance import Decision
from sled.history import History
from sled.messages import Decode, Open, Verify
from sled.server import Refusal, Server, ServerLimits
from sled.server.checks import StopTexts
from sled.testing import ToyTarget
from sled.types import Sampling, Terms

SHAPE = {"vocab_size": 20, "max_positions": 64, "max_window": 4, "page_tokens": 4, "num_pages": 20}


def right_answer(target: ToyTarget, prompt, sampling, terms) -> tuple[list[int], str]:
    """The answer and how it ends, by plain decoding."""
    room = target.shape.max_positions - len(prompt)
    room = min(room, terms.max_tokens) if terms.max_tokens else room
    tokens, watch = target.plain_answer(prompt, sampling, room), StopTexts(terms.stop, target.shape.pieces)
    for index, token in enumerate(tokens):
        if watch.ends_with(token) or token == 0:
            return tokens[: index + 1], "stop"
    return tokens, "length"


class Device:
    """What a device knows: its prompt, and the tokens it was told."""

    def __init__(self, world, number) -> None:
        rng = self.rng = world.rng
        common = [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3]
        self.number, self.owner = number, f"owner {number % 3}"
        self.prompt = common[: rng.randrange(1, 12)] + [rng.randrange(1, 12) for _ in range(rng.randrange(6))]
        self.sampling = Sampling(temperature=rng.choice((0.0, 0.9)), seed=number)
        stop = rng.choice(((), (), (f"<{rng.randrange(1, 20)}><{rng.randrange(1, 20)}>",)))
        self.terms = Terms(max_tokens=rng.choice((0, 1, 7, 30)), stop=stop)
        self.right, self.right_finish = right_answer(ToyTarget(**SHAPE), self.prompt, self.sampling, self.terms)
        self.answer, self.finish = [], ""
        self.session = self.server = self.ticket = None

    @property
    def text(self):
        return self.prompt + self.answer

    def open(self, server, now) -> None:
        self.session, self.server, self.ticket = self.rng.randbytes(8), server, None
        message = Open(self.session, self.sampling, self.prompt, False, self.answer, terms=self.terms)
        assert server.open(self.owner, message, self.prompt, now=now).committed == len(self.text)

    def ask(self, ticket, now) -> None:
        """A round or a stream from where the device stands."""
        base, digest = len(self.text), History(self.text).digest(len(self.text))
        if self.rng.random() < 0.3:
            message = Decode(self.session, base, digest, self.rng.choice((1, 3, 50)))
            self.server.decode(self.owner, message, ticket, now=now)
            self.ticket = ticket
            return
        good = self.right[len(self.answer) :][: self.rng.randrange(5)]
        draft = (good + [self.rng.randrange(20) for _ in range(self.rng.randrange(5))])[:4]
        verdict = self.server.verify(self.owner, Verify(self.session, base, digest, draft), ticket, now=now)
        self.ticket = ticket if verdict is None else None
        if verdict is not None:
            self.hear(verdict)

    def hear(self, verdict) -> None:
        start = verdict.base - len(self.prompt)
        assert start >= 0
        if start <= len(self.answer):  # a lost part leaves a gap, which the next request closes
            self.answer[start:] = (
                verdict.tokens if start + len(verdict.tokens) > len(self.answer) else self.answer[start:]
            )
            assert self.answer == self.right[: len(self.answer)]
            if verdict.finish and start + len(verdict.tokens) == len(self.answer):
                self.finish = verdict.finish
                assert (self.answer, self.finish) == (self.right, self.right_finish)


class World:
    """All of them; `tick` does one random thing, `settle` lets every answer come to its end."""

    def __init__(self, seed, num_devices=6, **limits) -> None:
        self.rng = random.Random(seed)
        self.limits = ServerLimits(batch_tokens=24, prefill_beside_rounds=8, rejected_burst=30, **limits)
        self.targets = [ToyTarget(**SHAPE), ToyTarget(**SHAPE)]
        self.servers = [Server(target.shape, self.limits) for target in self.targets]
        self.devices = [Device(self, number) for number in range(num_devices)]
        self.now, self.num_tickets, self.calm = 0.0, 0, False
        self.sessions, self.num_answers = {}, 0  # the session of every ticket

    def tick(self) -> None:
        self.now += 0.02
        kinds = ["ask"] * 6 + ["step"] * 5
        kinds += [] if self.calm else ["leave", "retry", "vanish", "move", "crash", "pause", "fail"]
        kind, device = self.rng.choice(kinds), self.rng.choice(self.devices)
        getattr(self, kind)(device)
        for server in self.servers:
            self.deliver(server.take_answers())
        if device.finish:
            self.num_answers += 1
            self.devices[device.number] = Device(self, device.number)

    def ask(self, device) -> None:
        if not device.finish and device.ticket is None:
            self.num_tickets += 1
            try:
                if device.session is None:
                    device.open(self.rng.choice(self.servers), self.now)
                ticket = f"{device.number} {self.num_tickets}"
                self.sessions[ticket] = device.session
                device.ask(ticket, self.now)
            except Refusal as refusal:
                if refusal.code != "session_unknown":
                    raise AssertionError(refusal.detail) from refusal
                device.session = None

    def retry(self, device) -> None:
        """The request was lost on its way, as far as the device knows."""
        device.ticket = None
        self.ask(device)

    def vanish(self, device) -> None:
        gone, device.ticket = device.ticket, None
        if gone is not None:
            device.server.withdraw(lambda ticket: ticket == gone)

    def leave(self, device) -> None:
        if device.session in getattr(device.server, "sessions", ()):
            device.server.close(device.owner, device.session)
        device.session = device.ticket = None

    def move(self, device) -> None:
        """To whichever server, the old one keeping a session that nobody asks for any more."""
        device.session = device.ticket = None

    def crash(self, device) -> None:
        if self.rng.random() < 0.2:
            index = self.rng.randrange(2)
            old, self.targets[index] = self.servers[index], ToyTarget(**SHAPE)
            self.servers[index] = Server(self.targets[index].shape, self.limits)
            for other in self.devices:
                if other.server is old:
                    other.ticket, other.server = None, self.servers[index]

    def pause(self, device) -> None:
        for server in self.servers:
            self.rng.choice((server.pause, server.resume))(device.ticket)

    def step(self, device) -> None:
        self.forward(self.rng.randrange(2))

    def fail(self, device) -> None:
        self.forward(self.rng.randrange(2), failing=True)

    def forward(self, index, failing=False) -> bool:
        """One forward, during which requests may come in, and which may fail or give nonsense."""
        server, target = self.servers[index], self.targets[index]
        step = server.next_step(now=self.now)
        if step is None:
            return False
        for _ in range(0 if self.calm else self.rng.randrange(3)):
            getattr(self, self.rng.choice(("ask", "retry", "vanish", "leave", "pause")))(self.rng.choice(self.devices))
        for part in server.isolate(step) if failing else [step]:
            if failing and self.rng.random() < 0.5:
                self.refused(server.fail(part))
                continue
            decisions = target.verify(part.chunks, part.rounds)
            if failing and self.rng.random() < 0.3:
                decisions = [Decision(0, 0, finite=False) for _ in decisions]
            self.deliver(server.complete(part, decisions, now=self.now, took_s=0.01))
        return True

    def deliver(self, answers) -> None:
        for answer in answers:
            if answer.refusal is not None:
                self.refused(answer.tickets)
            for ticket in answer.tickets if answer.refusal is None else ():
                device = self.devices[int(ticket.split()[0])]
                if not self.calm and self.rng.random() < 0.1:
                    continue  # the answer is lost; the device asks again some time
                if device.ticket == ticket:
                    device.ticket = None if answer.last else ticket
                if device.session == self.sessions[ticket]:
                    device.hear(answer.verdict)

    def refused(self, tickets) -> None:
        for ticket in tickets:
            device = self.devices[int(ticket.split()[0])]
            device.ticket = None if device.ticket == ticket else device.ticket

    def settle(self) -> None:
        """No more misfortune: every device gets its whole answer."""
        self.calm = True
        for device in self.devices:
            device.session = device.ticket = None
        for server in self.servers:
            server.withdraw(lambda ticket: True)
        for _ in range(600):
            for device in self.devices:
                self.ask(device)
            for index in range(2):
                self.deliver(self.servers[index].take_answers())
                self.forward(index)
            if all(device.finish for device in self.devices):
                return
        raise AssertionError([(device.answer, device.right, device.ticket) for device in self.devices])

    def check(self) -> None:
        """Nothing is lost or kept by mistake."""
        for server in self.servers:
            gauges = server.gauges()
            assert gauges.pages_held + gauges.pages_cached + gauges.pages_free == SHAPE["num_pages"]
            assert gauges.queued_tokens >= 0
            pages = {page for session in server.sessions.values() for page in session.table.pages}
            assert gauges.pages_held == len(pages)

    def close(self) -> None:
        """Every session goes: every page is to be had again."""
        for server in self.servers:
            server.give_up()
            server.take_answers()
            gauges = server.gauges()
            assert (gauges.sessions, gauges.waiting_rounds, gauges.streams, gauges.pages_held) == (0, 0, 0, 0)
            assert gauges.queued_tokens == 0
            assert abs(gauges.promised_rate) < 1e-6
            assert server.idle
