"""What can go wrong on the bus, and whose fault it is.

LocalError: this process must change something. RemoteError: the other end, or the way to it.
Every message is one line, carries the numbers and names the remedy.
"""

from __future__ import annotations


class EdgebusError(Exception):
    """Base of everything edgebus raises on purpose."""


class LocalError(EdgebusError):
    """This process can put it right."""


class RemoteError(EdgebusError):
    """The peer, or the way to it, is the reason."""


class ConfigError(LocalError):
    """A setting or an argument that cannot work."""


class InsecureError(ConfigError):
    """Plaintext was about to be used without `insecure=True`."""


class KeyFileError(LocalError):
    """A key file is missing, malformed or readable by others."""


class FileError(LocalError, OSError):
    """A file or directory of ours cannot be read or written; also what its cause is: an OSError, a FileNotFoundError.

    Args:
        text: which, why, and what to do.
        cause: what the system said.
    """

    def __init__(self, text: str, cause: OSError | None = None) -> None:
        super().__init__(text)
        if cause is not None:
            self.errno, self.strerror, self.filename = cause.errno, cause.strerror, cause.filename

    def __str__(self) -> str:
        return str(self.args[0])

    def __reduce__(self) -> tuple[type[FileError], tuple[str, OSError]]:
        return FileError, (str(self), OSError(self.errno, self.strerror, self.filename))


class MessageTooLarge(LocalError):
    """The message is over a limit that the peer advertised; nothing was sent."""


class QueueFull(LocalError):
    """More requests wait for an outcome than `Limits.max_outstanding_bytes`; this one was not accepted."""


class NodeClosed(LocalError):
    """The node or link was closed in this process, or belongs to another process (fork)."""


class BindError(LocalError):
    """The endpoint cannot be bound: in use, not ours, or malformed."""


class RequestCancelled(LocalError):
    """The request was cancelled with `Pending.cancel()`."""


class AlreadyAnswered(LocalError):
    """A request was answered twice; the first answer stands."""


class PeerUnreachable(RemoteError):
    """Nobody answers at the endpoint."""


class KeyNotAllowed(RemoteError):
    """The server's allow-list does not contain our public key."""


class WrongServerKey(RemoteError):
    """The secure handshake cannot complete: another key over there, or one side is plaintext."""


class VersionMismatch(RemoteError):
    """The two nodes have no protocol version in common."""


class DeadlineExceeded(RemoteError):
    """No answer within the deadline, on a link that was up (or before the request could leave)."""


class LinkLost(RemoteError):
    """The link went down after the request was sent: whether it was executed is unknown."""


class StreamEnded(RemoteError):
    """Nobody wants further parts of a stream: cancelled, expired, or the caller is gone."""


class Refused(RemoteError):
    """The peer answered no.

    Args:
        code: machine-readable reason; the bus itself uses busy, cancelled, closing, dropped,
            expired_key, forbidden, forgotten, internal, malformed, queue_full, rate_limited, stale, too_large and
            unknown_service.
        detail: one line for people.
        info: bytes the refusing handler attached.
    """

    def __init__(self, code: str, detail: str, info: bytes = b"") -> None:
        super().__init__(f"refused ({code}): {detail}" if detail else f"refused ({code})")
        self.code = code
        self.detail = detail
        self.info = info


class WireError(RemoteError):
    """Bytes that are not a message; never leaves the bus, which counts and refuses instead.

    Args:
        reason: one line.
        request_id: the request the bytes belong to, where the header was still readable.
        is_answer: True if that header was an answer (reply or refusal) to our own request.
    """

    def __init__(self, reason: str, *, request_id: int | None = None, is_answer: bool = False) -> None:
        super().__init__(reason)
        self.request_id = request_id
        self.is_answer = is_answer
