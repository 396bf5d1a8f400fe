"""What a device does while no server answers: fail, wait, or go on with its drafter and show what is unverified.

Pure: no sockets, clock or randomness; times are told.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from sled.errors import ParameterError

OnLoss: TypeAlias = Literal["fail", "wait", "release"]
RELEASE_AFTER_S = 2.0
MAX_WAIT_S = 10 * 365 * 86_400.0


@dataclass(slots=True)
class Loss:
    """One answer's times without a server.

    Args:
        policy: "fail" ends the answer with the error, after a bounded patience that is not ours; "wait" goes on
            trying; "release" has drafts shown meanwhile.
        wait_s: how long to go on trying: from the loss on, or when drafts are shown, from the last of them on;
            inf for ever.
        release_after_s: how long to hold drafts back.

    Raises:
        ParameterError: a value out of range.

    >>> loss = Loss("release", 30.0, 2.0)
    >>> loss.begin(now=10.0), loss.begin(now=11.0), loss.releases(now=11.9), loss.releases(now=12.0)
    (True, False, False, True)
    >>> loss.spent(now=15.0); loss.over(now=44.9), loss.over(now=45.0)
    (False, True)
    """

    policy: OnLoss = "fail"
    wait_s: float = math.inf
    release_after_s: float = RELEASE_AFTER_S
    _since: float | None = None
    _spent_at: float | None = None

    def __post_init__(self) -> None:
        if self.policy not in get_args(OnLoss):
            raise ParameterError(f"on_loss is {self.policy!r}, give one of {', '.join(get_args(OnLoss))}")
        if not (0 <= self.wait_s <= MAX_WAIT_S or self.wait_s == math.inf):
            raise ParameterError(f"wait_s is {self.wait_s}, give 0 or more seconds, or inf to wait for ever")
        if not 0 <= self.release_after_s <= MAX_WAIT_S:
            raise ParameterError(f"release_after_s is {self.release_after_s}, give 0 or more seconds")

    @property
    def bears(self) -> bool:
        """Whether the answer goes on without a server at all."""
        return self.policy != "fail"

    @property
    def lost(self) -> bool:
        """Whether there is no server now."""
        return self._since is not None

    def begin(self, *, now: float) -> bool:
        """There is no server; True if that is new."""
        if self._since is not None:
            return False
        self._since = now
        return True

    def end(self) -> None:
        """A server is back."""
        self._since = self._spent_at = None

    def releases(self, *, now: float) -> bool:
        """Whether drafts are shown now."""
        return self.policy == "release" and self._since is not None and now >= self._since + self.release_after_s

    def spent(self, *, now: float) -> None:
        """There is nothing more to show."""
        if self._spent_at is None:
            self._spent_at = now

    def over(self, *, now: float) -> bool:
        """Whether it was long enough."""
        since = self._spent_at if self.policy == "release" else self._since
        return self.bears and since is not None and now >= since + self.wait_s
