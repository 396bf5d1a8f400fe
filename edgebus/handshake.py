"""What the socket monitor says about a dialled socket: connected, disconnected or hopeless. Pure.

CURVE fails silently for the sender; only the monitor knows. Seen with libzmq 4.3.5 (client side):
key not in the server's list -> HANDSHAKE_FAILED_AUTH 400, no further try; client and server use different
mechanisms -> HANDSHAKE_FAILED_PROTOCOL, no further try; wrong server key -> HANDSHAKE_FAILED_NO_DETAIL with
EPIPE or ECONNRESET, again at every try; a listener that says nothing -> the same with EAGAIN after
HANDSHAKE_IVL; nobody listening -> CLOSED and CONNECT_RETRIED.

A CURVE listener sends its greeting to a plaintext side and closes at once. Which one is read first is a race: the other
mechanism, or a cut like any other, at every try. So a plaintext side that is cut again asks for the greeting alone.
"""

from __future__ import annotations

import errno
from typing import NamedTuple

from edgebus.counting import count
from edgebus.zmtp import parse_greeting

PATIENCE = 3
"""Handshakes cut by the server in a row before its key is taken to be wrong: a restart can cut one or two.
After the first success the key is known to be right, and cuts are a server, or what stands before it, in trouble."""

GREETING_EVERY = 64
"""Cuts from one question for the listener's greeting to the next, after 2, 4, 8, ... of them."""


class Verdict(NamedTuple):
    """What an event means; code is set for the hopeless.

    Unclear: what the listener greets with would tell. Doubtful: it is another key's turn, if there is one.
    """

    what: str  # connected | disconnected | failed | unclear | doubtful
    code: str = ""
    detail: str = ""


class HandshakeWatch:
    """Follows one dialled socket.

    Args:
        endpoint: for messages.
        secure: True if this side uses CURVE.
        proven: True if a handshake succeeded there before, with this key or another one that was given for it.
    """

    def __init__(self, endpoint: str, *, secure: bool, proven: bool = False) -> None:
        self._endpoint = endpoint
        self._secure = secure
        self._cut = 0
        self._proven = proven  # one handshake succeeded with this server key
        self.handshaken = False
        self.attempts = 0
        self.reached = 0  # attempts that found a listener
        self.mute = 0  # listeners that never spoke

    def handle(self, event: str, value: int) -> Verdict | None:
        """Take one monitor event by its libzmq name; None if it changes nothing."""
        match event:
            case "CONNECT_DELAYED":
                self.attempts += 1
            case "CONNECTED":
                self.reached += 1
            case "HANDSHAKE_SUCCEEDED":
                self._cut, self._proven, self.handshaken = 0, True, True
                return Verdict("connected")
            case "DISCONNECTED" if self.handshaken:
                self.handshaken = False
                return Verdict("disconnected")
            case "HANDSHAKE_FAILED_AUTH":
                return self._not_allowed(value)
            case "HANDSHAKE_FAILED_PROTOCOL":
                return self._mechanism()
            case "HANDSHAKE_FAILED_NO_DETAIL":
                return self._no_detail(value)
        return None

    def greeted(self, content: bytes) -> Verdict | None:
        """Take the first bytes of the listener, asked beside the link; None if they change nothing.

        A node that died in the middle of a handshake greets as it is: only the greeting of the other mechanism counts.
        """
        seen = parse_greeting(content, closed=True)
        if self._secure or seen.kind != "zmtp" or seen.version < (3, 0) or seen.mechanism != "CURVE":
            return None
        return self._mechanism()

    def describe(self) -> str:
        """Why there is no link yet, for messages."""
        if self.handshaken:
            return f"{self._endpoint} sent no welcome after the handshake: is it an edgebus node, and not stuck?"
        if self.mute:
            return f"{self._endpoint} accepts but never speaks ZMTP: wrong port, or a stopped process"
        if self.reached:
            return f"{self._endpoint} accepted and closed {count(self.reached, 'connection')}: wrong port?"
        if not self.attempts and self._endpoint.startswith("tcp://"):
            return f"{self._endpoint} cannot be looked up: see that its name resolves (getent hosts NAME)"
        return (
            f"nobody listens at {self._endpoint} ({count(self.attempts, 'attempt')}): "
            "start the server, or check host and port"
        )

    def _not_allowed(self, value: int) -> Verdict:
        detail = (
            f"{self._endpoint} refused our public key (status {value}): "
            "run `edgebus allow DIR node.key` on the server with our node.key (with `--until none` if it has expired)"
        )
        return Verdict("failed", "key_not_allowed", detail)

    def _mechanism(self) -> Verdict:
        ours = "CURVE" if self._secure else "plaintext"
        theirs = "plaintext" if self._secure else "CURVE"
        detail = (
            f"{self._endpoint} does not speak {ours}, it looks like {theirs}: "
            "give both sides keys, or both insecure=True"
        )
        return Verdict("failed", "wrong_server_key", detail)

    def _no_detail(self, value: int) -> Verdict | None:
        if value == errno.EAGAIN:
            self.mute += 1
            return None
        self._cut += 1
        if not self._secure:
            return Verdict("unclear") if _is_due(self._cut) else None
        if self._proven and self._cut % PATIENCE == 0:
            return Verdict("doubtful")
        if self._proven or self._cut < PATIENCE:
            return None
        detail = (
            f"{self._endpoint} cut {self._cut} handshakes in a row: it holds another key than "
            "the server_key given (compare with its node.key), or it is plaintext"
        )
        return Verdict("failed", "wrong_server_key", detail)


def _is_due(num_cuts: int) -> bool:
    if num_cuts < GREETING_EVERY:
        return num_cuts > 1 and num_cuts.bit_count() == 1
    return num_cuts % GREETING_EVERY == 0
