"""The device's way to its server, or to one of several that hold the same artefact."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import edgebus
from edgebus.arrays import Array
from edgebus.errors import KeyNotAllowed, LinkLost, PeerUnreachable, VersionMismatch, WrongServerKey
from edgebus.payloads import Payload, decode
from edgebus.plain import speaks_zmtp
from edgebus.stats import LinkStats
from qpart.errors import Infeasible, ProtocolError, UnknownModel
from qpart.messages import Busy, InfeasibleInfo

if TYPE_CHECKING:
    from edgebus import Link, Node
    from edgebus.calls import Pending

_P = TypeVar("_P", bound=Payload)

Where = tuple[str, str | None]
"""Endpoint and public key, None in plaintext."""

_now = time.monotonic
_LOOK_S = 0.05  # how often whoever waits looks at the health of the link
_BUSY_S, _LEAST_PAUSE_S = 0.05, 0.005
_BUSY = frozenset({"busy", "rate_limited"})
_ELSEWHERE = _BUSY | {"closing", "unknown_service", "dropped"}
"""Refusals that only say: not here, or not now."""
FOR_GOOD = KeyNotAllowed, WrongServerKey, VersionMismatch
"""A server that says so will never answer this device."""
_LOOK_EVERY_S, _GREET_S, _DIAL_S = 5.0, 1.0, 3.0  # three handshakes cut in a row are what shows a wrong key
_FRESH_S = 2 * _LOOK_EVERY_S


def keys_of(servers: Sequence[Where]) -> list[str] | None:
    """The keys of a server that may have any of them, None in plaintext."""
    return [key for _, key in servers if key] or None


class ServerLost(edgebus.RemoteError):
    """The server is gone, or does not answer in time; whether it has computed the request is unknown.

    Attributes:
        cause: what the bus said.
    """

    def __init__(self, cause: edgebus.EdgebusError) -> None:
        super().__init__(str(cause))
        self.cause = cause


class _Found(NamedTuple):
    """What a look at all servers has found.

    Attributes:
        why: all have turned us away, of the last; None if not.
        at: when it was found.
        num_ups: how often links had come up again before.
    """

    why: edgebus.EdgebusError | None = None
    at: float = -math.inf
    num_ups: int = 0


@dataclass(slots=True)
class Sent:
    """A request on its way, with all that is needed to ask again."""

    service: str
    payload: bytes
    arrays: Sequence[Array]
    link: Link
    pending: Pending
    until: float
    attempts: int = 1
    num_busy: int = 0
    lost: edgebus.EdgebusError | None = None


@dataclass(slots=True)
class Asked:
    """A request to whichever server is in use."""

    line: Line
    sent: Sent

    def result(self) -> edgebus.Reply:
        """Wait for its answer.

        Raises:
            As Line.finish, but what the bus said in place of ServerLost.
        """
        try:
            return self.line.finish(self.sent)
        except ServerLost as lost:
            raise lost.cause from None

    def cancel(self) -> None:
        """Its answer is not wanted any more."""
        self.sent.pending.cancel()


class Line:
    """Requests to the server in use; where it is lost and another one lives, to that.

    Args:
        node: that dials.
        servers: at least one; an endpoint comes once for each key that its server may have.
        timeout_s: for the connection, and for each answer.

    Raises:
        edgebus.EdgebusError: no server can be reached.
    """

    def __init__(self, node: Node, servers: Sequence[Where], timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._node, self._servers = node, list(servers)
        self._looks: threading.Thread | None = None
        self._found, self._closed, self._starts = _Found(), threading.Event(), threading.Lock()
        self._pool: edgebus.Pool | None = None
        if len({endpoint for endpoint, _ in servers}) == 1:
            self.link = node.connect(servers[0][0], server_key=keys_of(servers), timeout_s=timeout_s)
        else:
            self._pool = edgebus.Pool(node, list(servers))
            self.link = self._pool.link(timeout_s)
        self._used = [self.link]
        self._chance = random.Random()  # noqa: S311 - spreads load, keeps no secret

    @property
    def is_down(self) -> bool:
        """Whether the server in use is gone, as far as is known, and no other one lives."""
        return self.link.health == "down" and not self.elsewhere()

    def elsewhere(self) -> bool:
        """Use another server that lives; False if there is none."""
        if (other := self._other()) is None:
            return False
        self.link = other
        if not any(link is self.link for link in self._used):
            self._used.append(self.link)
        return True

    def _other(self) -> Link | None:
        """The link to another server that lives."""
        if self._pool is None:
            return None
        try:
            return self._pool.link(0.0, but=lambda link: link is self.link)
        except PeerUnreachable:
            return None

    def turned_away(self) -> edgebus.EdgebusError | None:
        """Why waiting for a server is of no use, as far as is known: all have turned us away for good; of the last.

        Where the link is down it has a thread look, every few seconds, and does not wait for it. A link that was up
        once takes every cut handshake for trouble over there, so each server is dialled anew. It counts only where a
        node greets: a proxy before a server that is away cuts handshakes, too. What was found before the link was up
        again counts no more.
        """
        if self._closed.is_set():
            return self._found.why
        try:
            is_down = self.link.health == "down" and self._other() is None
        except edgebus.NodeClosed:  # just now, by another thread
            return self._found.why
        if not is_down:
            self._found = _Found()
            return None
        num_ups = self.stats().reconnects
        if _now() >= self._found.at + _LOOK_EVERY_S:
            with self._starts:
                if not (self._closed.is_set() or (self._looks is not None and self._looks.is_alive())):
                    self._looks = threading.Thread(target=self._look, args=(num_ups,), name="qpart-look", daemon=True)
                    self._looks.start()
        found = self._found
        return found.why if found.num_ups == num_ups else None

    def check(self) -> None:
        """See whether it is of any use to wait for a server.

        Raises:
            edgebus.KeyNotAllowed, WrongServerKey, VersionMismatch: `turned_away` says that it is not, and was found
                just now: a server may be away by now that will be another one when it comes.
        """
        why = self.turned_away()
        if why is not None and _now() < self._found.at + _FRESH_S:
            raise type(why)(str(why))

    def _look(self, num_ups: int) -> None:
        why: edgebus.EdgebusError | None = None
        for endpoint, key in self._servers:
            if self._closed.is_set():
                return
            why = None  # of the last
            try:
                if speaks_zmtp(endpoint, _GREET_S):
                    self._node.connect(endpoint, server_key=key, timeout_s=_DIAL_S).close()
            except FOR_GOOD as error:
                why = error
                continue
            except edgebus.EdgebusError:
                pass
            break
        if not self._closed.is_set():
            self._found = _Found(why, _now(), num_ups)

    def stats(self) -> LinkStats:
        """Counters of all links that were used."""
        return sum((link.stats() for link in self._used), LinkStats())

    def send(self, service: str, payload: bytes, arrays: Sequence[Array] = (), timeout_s: float | None = None) -> Sent:
        """Send a request; `finish` waits for its answer."""
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        if self.link.health == "down":
            self.elsewhere()
        pending = self.link.send_request(service, payload, arrays, timeout_s)
        return Sent(service, payload, arrays, self.link, pending, _now() + timeout_s)

    def send_request(self, service: str, payload: bytes = b"", *, timeout_s: float = 30.0) -> Asked:
        """A request for those who wait themselves (`edgebus.blobs`): to a server that lives, if one does."""
        return Asked(self, self.send(service, payload, timeout_s=timeout_s))

    def finish(
        self, sent: Sent, *, give_up: Callable[[], bool] = lambda: False, stop: threading.Event | None = None
    ) -> edgebus.Reply:
        """Wait for an answer. The server keeps nothing, so a request may be asked again, here or elsewhere.

        Args:
            give_up: asked while the server is gone; then nobody waits for the deadline.
            stop: set when the answer is not wanted any more.

        Raises:
            ServerLost: there was no answer, and asking again was no use.
            edgebus.RequestCancelled: it was cancelled.
            Infeasible, UnknownModel: so the server said.
            edgebus.KeyNotAllowed, WrongServerKey, VersionMismatch: all have turned us away for good.
            edgebus.Refused: any other refusal.
        """
        while True:
            lost: edgebus.EdgebusError
            if not sent.pending.wait(_LOOK_S):
                if stop is not None and stop.is_set():
                    sent.pending.cancel()
                    raise edgebus.RequestCancelled(f"{sent.service}: cancelled")
                if sent.link.health != "down":
                    continue
                lost = LinkLost(f"{sent.link.endpoint} is gone")
                if self.link is sent.link and not self.elsewhere():
                    if give_up():
                        sent.pending.cancel()
                        raise ServerLost(lost)
                    try:
                        self.check()
                    except FOR_GOOD:
                        sent.pending.cancel()
                        raise
                    continue
                sent.pending.cancel()
            else:
                outcome = self._outcome(sent, stop or threading.Event())
                if isinstance(outcome, edgebus.Reply):
                    return outcome
                lost = outcome
                if not isinstance(lost, edgebus.Refused):
                    self.check()
            if stop is not None and stop.is_set():
                raise edgebus.RequestCancelled(f"{sent.service}: cancelled")
            self._again(sent, lost)

    def request(self, service: str, payload: bytes = b"", arrays: Sequence[Array] = ()) -> edgebus.Reply:
        """One request and its answer; what the server refuses comes as our errors.

        Raises:
            As `finish`, but what the bus said in place of ServerLost.
        """
        return Asked(self, self.send(service, payload, arrays)).result()

    def call(self, service: str, payload: bytes, kind: type[_P]) -> _P:
        """One request whose answer is a payload of this kind.

        Raises:
            ProtocolError: it is not.
        """
        return decoded(kind, self.request(service, payload).payload)

    def close(self) -> None:
        """Close what it has opened, and look no more; the node is the caller's."""
        with self._starts:
            self._closed.set()
        if self._pool is not None:
            self._pool.close()
        else:
            self.link.close()

    def join(self, timeout_s: float) -> None:
        """Once the node is closed: wait for the thread that looks."""
        if self._looks is not None:
            self._looks.join(timeout_s)

    def _outcome(self, sent: Sent, stop: threading.Event) -> edgebus.Reply | edgebus.EdgebusError:
        """What became of a request: its answer, or why it may be asked again, once its server may be.

        Raises:
            As `finish`: what asking again does not change.
        """
        try:
            return sent.pending.result()
        except edgebus.Refused as refused:
            if refused.code not in _ELSEWHERE:
                raise error_of(refused) from None
            if refused.code in _BUSY:
                self._pause(sent, refused, stop)
            return refused
        except (LinkLost, edgebus.DeadlineExceeded) as error:
            return error
        except FOR_GOOD as error:
            if self.link is sent.link and not self.elsewhere():
                raise
            return error

    def _again(self, sent: Sent, lost: edgebus.EdgebusError) -> None:
        """Ask again in what is left of the time: as often as a server is busy, but one that is lost only once.

        Raises:
            ServerLost: that is no use.
        """
        left_s = sent.until - _now()
        busy = isinstance(lost, edgebus.Refused) and lost.code in _BUSY
        moved = self.link is not sent.link or self.elsewhere()
        if left_s <= 0 or not (busy or moved or (isinstance(lost, LinkLost) and sent.lost is None)):
            raise ServerLost(sent.lost or lost)  # of what happened the first is what the caller has to know
        sent.attempts += 1
        if not busy:
            sent.lost = sent.lost or lost
        try:
            sent.pending = self.link.send_request(sent.service, sent.payload, sent.arrays, left_s)
        except edgebus.EdgebusError:
            raise ServerLost(lost) from None
        sent.link = self.link

    def _pause(self, sent: Sent, refused: edgebus.Refused, stop: threading.Event) -> None:
        """Ask another server at once, or leave a busy one alone for as long as it says.

        Some wait longer and some less, so that not all come back at once; of several servers that all are busy every
        other one is waited for.
        """
        sent.num_busy += 1
        if sent.num_busy % 2 and self.elsewhere():
            return
        try:
            wait_s = decode(Busy, refused.info).retry_after_s if refused.info else _BUSY_S
        except ValueError:
            wait_s = _BUSY_S
        wait_s = max(_LEAST_PAUSE_S, wait_s * self._chance.uniform(0.75, 1.25))
        stop.wait(max(0.0, min(wait_s, sent.until - _now())))


def decoded(kind: type[_P], payload: bytes) -> _P:
    """What the server sent, as a payload of this kind.

    Raises:
        ProtocolError: it is none.
    """
    try:
        return decode(kind, payload)
    except (ValueError, edgebus.LocalError) as error:
        raise ProtocolError(f"{error}; check that device and server run the same version") from None


def error_of(refused: edgebus.Refused) -> edgebus.EdgebusError:
    """A refusal as the error that it stands for."""
    match refused.code:
        case "infeasible":
            try:
                info = decode(InfeasibleInfo, refused.info)
            except ValueError:
                return refused
            return Infeasible(refused.detail, constraint=info.constraint, nearest_accuracy=info.nearest_accuracy)
        case "unknown_model":
            return UnknownModel(refused.detail)
        case _:
            return refused
