"""A server machine with a toy target, driven the way the shell does."""

from __future__ import annotations

from sled.history import History
from sled.messages import Decode, Open, Verdict, Verify
from sled.server import Answer, Server, ServerLimits
from sled.testing import ToyTarget
from sled.types import Sampling, Terms

PROMPT = [5, 6, 7]
SAMPLED = Sampling(temperature=1.0, seed=9)


def session_id(number: int = 0) -> bytes:
    return number.to_bytes(8, "little")


class Driver:
    """Runs the machine and a toy target the way the shell does."""

    def __init__(self, limits: ServerLimits | None = None, form_of=None, policy=None, cost=None, **target: int) -> None:
        self.target = ToyTarget(**target)
        self.server: Server[str] = Server(self.target.shape, limits, form_of=form_of, policy=policy, cost=cost)
        self.now = 0.0

    def open(self, number=0, prompt=PROMPT, sampling=SAMPLED, answer=(), owner="me", now=0.0, terms=None):
        message = Open(session_id(number), sampling, list(prompt), False, list(answer), b"", terms or Terms())
        return self.server.open(owner, message, prompt, now=now)

    def ask(self, text, draft=(), number=0, owner="me", ticket="t", now=0.0, law=None) -> Verdict | None:
        message = Verify(session_id(number), len(text), History(text).digest(len(text)), list(draft), law)
        return self.server.verify(owner, message, ticket, now=now)

    def stream(self, text, number=0, *, owner="me", ticket="s", max_tokens=1000) -> None:
        message = Decode(session_id(number), len(text), History(text).digest(len(text)), max_tokens)
        self.server.decode(owner, message, ticket, now=self.now)

    def parts(self, num_steps=1000) -> list[Answer[str]]:
        """What is told until there is nothing left to compute."""
        answers = self.server.take_answers()
        for _ in range(num_steps):
            step = self.server.next_step(now=self.now)
            if step is None:
                break
            answers += self.compute(step)
        return answers

    def compute(self, step, took_s=0.0) -> list[Answer[str]]:
        return self.server.complete(step, self.target.verify(step.chunks, step.rounds), now=self.now, took_s=took_s)

    def step(self) -> list[tuple[list[str], Verdict]]:
        step = self.server.next_step(now=self.now)
        answers = self.compute(step) if step else self.server.take_answers()
        assert all(answer.refusal is None for answer in answers)
        return [(answer.tickets, answer.verdict) for answer in answers]

    def steps(self) -> list[tuple[list[str], Verdict]]:
        for _ in range(1000):
            if answers := self.step():
                return answers
        raise AssertionError("no verdict in 1000 steps")

    def round(self, text, draft=(), number=0) -> Verdict:
        """A whole round, whether it is answered at once or by a step."""
        return self.ask(text, draft, number) or self.steps()[0][1]
