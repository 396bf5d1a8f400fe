"""What can go wrong, and whose fault it is; every message is one line and names the remedy."""

from __future__ import annotations

from collections.abc import Sequence

from edgebus import LocalError, RemoteError


class ParameterError(LocalError, ValueError):
    """An argument is out of its range; the message carries the value and the range."""


class UnknownModel(LocalError):
    """No model goes by this name, or the file or directory holds none we can load."""


class VocabularyMismatch(LocalError):
    """The drafter's token ids do not mean what the target's mean."""


class TargetChanged(RemoteError):
    """The server runs another model, or other arithmetic, than when the answer began."""


class AnswerIncomplete(LocalError):
    """The answer was broken off before its end."""


class StateUnusable(LocalError, ValueError):
    """A saved answer cannot be gone on with: no such file, damaged, of another version, or of another target."""


class DirectoryInUse(LocalError):
    """Another process works in the directory."""


class LockUnavailable(LocalError):
    """Nothing can keep a second run out of a directory: no file system at hand has locks."""


class ConstraintUnavailable(LocalError, ValueError):
    """A constraint was asked for where the library that holds answers to one is not installed."""


class FormBroken(LocalError, ValueError):
    """An answer's form costs more work than it may; rows up to the draft number `usable` do not (-1: none)."""

    def __init__(self, message: str, usable: int) -> None:
        super().__init__(message)
        self.usable = usable


class SessionUnknown(RemoteError):
    """The server has no such session (it restarted, or dropped it as idle): open it again."""


class StaleBase(RemoteError):
    """The round starts from a length the server has left behind; `committed` is where it stands now."""

    def __init__(self, message: str, committed: int) -> None:
        super().__init__(message)
        self.committed = committed


class PromptTooLong(RemoteError):
    """The prompt does not fit the target's context."""


class ServerBusy(RemoteError):
    """The server takes no further session now; try again after `retry_after_s`, or at one of `servers`, if any."""

    def __init__(self, message: str, retry_after_s: float = 0.0, servers: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.retry_after_s, self.servers = retry_after_s, list(servers)


class ProtocolError(RemoteError):
    """The other side answered something that the protocol does not allow."""


class TargetLost(LocalError):
    """The target computes nothing any more: the server ends, and is to be started again."""


class OutOfMemory(LocalError):
    """The target's device has no memory for this batch; a smaller one may fit."""
