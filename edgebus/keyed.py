"""Answers by idempotency key, pure: what was executed for a key is not executed again, whoever asks how often.

A key belongs to the peer's public key, so it outlives links and incarnations: a device that restarted and asks
again gets the first answer. Bounded in number, bytes and age.
"""

from __future__ import annotations

import itertools
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgebus.messages import Message
from edgebus.streams import content_bytes

if TYPE_CHECKING:
    from edgebus.answerer import Answerer

_MANY_WAITING = 1024
_LOOK = 64  # keys in execution that are passed over in search of an answer to forget
Asker = tuple["Answerer", int]


@dataclass(slots=True, eq=False)
class _Known:
    known_until: float
    waiting: list[Asker] = field(default_factory=list)
    answer: Message | None = None
    size_bytes: int = 0


_NOTHING: OrderedDict[bytes, _Known] = OrderedDict()


class KeyedAnswers:
    """Keys in execution and answers already given. Who fills it pays: the owner that remembers most forgets first.

    Args:
        max_count: keys remembered.
        max_bytes: bytes of answers remembered.
        keep_s: how long an answer is remembered after the deadline of the request that it was given to.
    """

    def __init__(self, max_count: int = 4096, max_bytes: int = 16 << 20, keep_s: float = 600.0) -> None:
        self._max_count, self._max_bytes, self._keep_s = max_count, max_bytes, keep_s
        self._known: dict[str | None, OrderedDict[bytes, _Known]] = {}
        self._bytes: Counter[str | None] = Counter()
        self.told: list[Answerer] = []  # those of other links that have something to send now

    def __len__(self) -> int:
        return sum(map(len, self._known.values()))

    def ask(
        self, owner: str | None, key: bytes, asker: Asker, *, now: float, expires_at: float
    ) -> Message | bool | None:
        """What is known of a key: its answer, True if it is being executed (the asker will be told), None if new."""
        known = self._known.get(owner, _NOTHING).get(key)
        if known is not None and known.answer is not None and now > known.known_until:
            self._drop(owner, key)
            known = None
        if known is None:
            self._known.setdefault(owner, OrderedDict())[key] = _Known(max(now, expires_at) + self._keep_s, [asker])
            self._bound()
            return None
        if known.answer is not None:
            return known.answer
        if len(known.waiting) >= _MANY_WAITING:
            known.waiting = [each for each in known.waiting if each[0].wants(each[1])]  # others gave up
        known.waiting.append(asker)
        return True

    def answered(self, owner: str | None, key: bytes, message: Message, *, keep: bool = True) -> list[Asker]:
        """The answer of a key, remembered unless it only says that nothing was done; returns who waits for it."""
        known = self._known.get(owner, _NOTHING).get(key)
        if known is None or known.answer is not None:
            return []
        if not keep:
            self._drop(owner, key)
            return known.waiting
        known.answer, known.size_bytes = message, content_bytes(message.frames)
        waiting, known.waiting = known.waiting, []
        self._bytes[owner] += known.size_bytes
        self._known[owner].move_to_end(key)
        self._bound()
        return waiting

    def _drop(self, owner: str | None, key: bytes) -> None:
        keys = self._known[owner]
        self._bytes[owner] -= keys.pop(key).size_bytes
        if not keys:
            del self._known[owner], self._bytes[owner]

    def _bound(self) -> None:
        while (too_many := len(self) > self._max_count) or sum(self._bytes.values()) > self._max_bytes:
            owner = max(self._known, key=(lambda each: len(self._known[each])) if too_many else self._bytes.__getitem__)
            keys = self._known[owner]
            # Answers first, oldest first; keys in execution only if there is nothing else within reach.
            done = next((key for key, known in itertools.islice(keys.items(), _LOOK) if known.answer is not None), None)
            self._drop(owner, done if done is not None else next(iter(keys)))
