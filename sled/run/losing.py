"""An answer whose server fails it: where it goes on, what it shows until then, and when it gives up."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import edgebus
from edgebus import PeerUnreachable
from edgebus.payloads import encode
from sled import messages
from sled.device import Generation, State
from sled.errors import TargetChanged
from sled.events import Event, Retracted, ServerLost, Unverified
from sled.loss import Loss
from sled.messages import Close
from sled.run.around import Around
from sled.run.drafting import Drafting
from sled.run.refusals import later
from sled.stop_text import AnswerText
from sled.takeover import Next, Patience, after_failure, avoidance_s
from sled.unverified import Released

if TYPE_CHECKING:
    from sled.run.servers import Servers

_MOST_PAUSE_S = 1.0  # between tries without a server: looking costs nothing
_FOR_EVER = 10**9
_OVERDUE_S = 1.0  # an answer that takes so long makes us ask whether its server lives at all
_PROBE_S = 1.0  # the bus of a server that computes answers in milliseconds
_PING = "edgebus.ping"


class Absence:
    """What an answer does without its server.

    Args:
        machine: the answer.
        servers: whom it may ask.
        drafting: goes on meanwhile, if drafts are shown.
        loss: the policy.
        released: what is shown.
        around: time and chance.
        timeout_s: all tries together, if the policy is to fail.

    Attributes:
        moves: how often the answer was opened anew.
        retry_at: no server is asked before.
        must_choose: no server is in use.
        reads: the drafter is at its text, and has said nothing yet that could be shown.
    """

    def __init__(
        self,
        machine: Generation,
        servers: Servers,
        drafting: Drafting,
        loss: Loss,
        released: Released,
        around: Around,
        timeout_s: float,
    ) -> None:
        self._machine, self._servers, self._drafting = machine, servers, drafting
        self.loss, self.released, self._around = loss, released, around
        # What is borne ends when `loss` says so; until then every look is followed by a pause.
        patience = (math.inf, _FOR_EVER, _MOST_PAUSE_S) if loss.bears else (timeout_s,)
        self._patience = Patience(patience[0], around.chance, *patience[1:])
        self._why = ""
        self._probe: edgebus.Pending | None = None
        self._probe_at = self._look_at = 0.0
        self.moves, self.retry_at = 0, 0.0
        self.must_choose, self.reads = True, False

    def after(self, error: edgebus.EdgebusError) -> ServerLost:
        """Prepare to go on after a failure, at another server or here.

        Raises:
            EdgebusError: there is no use in it.
        """
        machine, now, bears = self._machine, self._around.clock(), self.loss.bears
        where = after_failure(error)
        patient = self._patience.allows(len(machine.history), now=now)
        if where is Next.NOWHERE or not (patient or bears):
            raise error
        lost = ServerLost(self._servers.link.endpoint, str(error), 0.0)
        if where is Next.HERE:
            if not machine.session_lost():
                raise error
            return lost
        self._drop_session()
        advice = later(error)
        others = [(endpoint, key or None) for endpoint, key in advice.servers]
        self.must_choose = not self._servers.leave(max(avoidance_s(error), advice.after_s), others)
        if self.must_choose:
            if isinstance(error, TargetChanged) or (where is Next.ELSEWHERE_ONLY and not bears):
                raise error
            self.loss.begin(now=now)
            self._why = str(error)
            self.retry_at = now + self._patience.pause_s(advice.after_s, now=now)
        # Under a new id: the old one may stand for a longer text by now, which we have not been told.
        self.moves += 1
        machine.move(self._around.new_id())
        return lost

    def choose(self, unwanted: Callable[[], bool]) -> None:
        """Take a server into use, once `retry_at` has come; `unwanted` is asked while waiting.

        Raises:
            PeerUnreachable: none lives.
        """
        left_s = 0.0 if self.loss.bears else self._patience.left_s(now=self._around.clock())
        self._servers.choose(left_s, unwanted)
        self.must_choose = False

    def asked(self) -> None:
        """A request is on its way from now on, or a part of its answer has come."""
        self._probe_at = self._around.clock() + _OVERDUE_S
        if self._probe is not None:
            self._probe.cancel()
            self._probe = None

    def due(self) -> bool:
        """Whether it is time to look: for whoever does something else meanwhile."""
        now = self._around.clock()
        if now < self._look_at:
            return False
        self._look_at = now + self._around.look_s
        return True

    def look(self) -> ServerLost | None:
        """Look after the server that is to answer; tells once that it is silent, if that is borne.

        Raises:
            LinkLost: it is gone, or silent, and another one lives.
        """
        link = self._servers.link
        if self._servers.lost(link):
            raise edgebus.LinkLost(f"{link.endpoint} is down: another server may answer")
        if self._servers.several:
            self._look_closer()
        if self.loss.bears and link.health == "down" and self.loss.begin(now=self._around.clock()):
            self._why = f"{link.endpoint} is down"
            return ServerLost(link.endpoint, "no connection, or no word for too long", 0.0)
        return None

    def _look_closer(self) -> None:
        """Its connection may stand though nobody is there: a frozen process, a network that swallows everything."""
        link, now = self._servers.link, self._around.clock()
        if self._probe is None:
            if now >= self._probe_at and link.health == "up" and self._servers.elsewhere:
                self._probe = link.send_request(_PING, b"", timeout_s=_PROBE_S)
        elif self._probe.done():
            probe, self._probe, self._probe_at = self._probe, None, now + _OVERDUE_S
            # That it refuses is a word, too; a link that is lost tells it with the request.
            if probe.outcome == "expired" and self._servers.elsewhere:
                raise edgebus.LinkLost(f"{link.endpoint} is silent: another server may answer")

    def back(self) -> bool:
        """A server answers; True if there was none."""
        was = self.loss.lost
        self.loss.end()
        return was

    @property
    def over(self) -> bool:
        """Whether it was without a server for long enough."""
        return self.loss.over(now=self._around.clock())

    def error(self) -> PeerUnreachable:
        """What is said then."""
        return PeerUnreachable(
            f"no server for {self.loss.wait_s:.3g} s ({self._why}); see that one runs, or allow more time (wait_s)"
        )

    # -- what is shown meanwhile

    def show(self, committed: AnswerText) -> Unverified | None:
        """One more token without a verdict, if they are shown now and there is one."""
        now, machine, released = self._around.clock(), self._machine, self.released
        self.reads = False
        if not self.loss.releases(now=now):
            return None
        at, room = len(released.tokens), machine.max_tokens - (len(machine.history) - machine.num_prompt)
        chain = machine.chain
        wanted = bool(machine.num_prompt) and not released.ended and at < room
        if wanted and at >= len(chain.proposals):
            wanted = self._drafting.further(room - at)
            self.reads = wanted and at >= len(chain.proposals)
        if self.reads:
            return None
        if wanted:
            token, confidence, _ = chain.proposals[at]
            return released.show(token, committed, len(machine.history) + at, confidence)
        self.loss.spent(now=now)
        return None

    def committed(self, token: int, pos: int) -> Retracted | None:
        """What is to be said before a committed token."""
        return self.released.commit(token, pos)

    def ended(self) -> Iterator[Event]:
        """What is to be said at the end of the answer."""
        if self._machine.state is State.DONE and (retracted := self.released.retract(len(self._machine.history))):
            yield retracted

    def _drop_session(self) -> None:
        """What is left at a server that we leave is no use to anybody."""
        if self._machine.state is not State.OPENING and self._servers.link.health == "up":
            with contextlib.suppress(edgebus.EdgebusError):
                self._servers.link.send(messages.CLOSE, encode(Close(self._machine.session)), timeout_s=5.0)
