"""What leases are called on one link: numbers in the order of sending, whoever was quicker to fill his memory."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

_LOOKED_AT = 32  # numbers at each end that are looked up on a board


class Numbers:
    """Names for leases of one link (pure).

    The peer refuses numbers that it has reported as unused, so they have to grow from message to message. Threads that
    share a link fill their memory at once and send in another order, and what is sent again comes after what is newer:
    so a lease gets a number when its message leaves, another one each time.
    """

    def __init__(self) -> None:
        self._next = 0
        self._detour = -1  # the last number that went by the slow way
        self._leases: dict[int, int] = {}  # by number, which only grows
        self._sent: dict[int, int] = {}  # numbers a lease has
        self._numbered: set[int] = set()  # leases that had a number, and whose message may be sent again
        self._done: set[int] = set()  # leases whose message is not sent again

    def __len__(self) -> int:
        return len(self._leases)

    def number(self, lease_id: int) -> int:
        """A lease is on its way (again): what it is called."""
        number, self._next = self._next, self._next + 1
        self._leases[number] = lease_id
        self._sent[lease_id] = self._sent.get(lease_id, 0) + 1
        self._numbered.add(lease_id)
        return number

    def upcoming(self) -> int:
        """What the next one is called."""
        return self._next

    def went_round(self) -> None:
        """What has a number by now goes by a slow way, or may: what comes after must not overtake it."""
        self._detour = self._next - 1

    def in_order(self) -> bool:
        """Whether the quick way may be taken: the peer has received all that went by the slow one."""
        return self._detour < 0 or self._detour not in self._leases

    def was_sent(self, lease_id: int) -> bool:
        """Whether a lease whose message may still be sent again has had a number."""
        return lease_id in self._numbered

    def done(self, lease_ids: Iterable[int]) -> list[int]:
        """Messages with these leases are not sent again; returns those that the peer does not use."""
        free = []
        for lease_id in lease_ids:
            self._numbered.discard(lease_id)
            if lease_id in self._sent:
                self._done.add(lease_id)
            else:
                free.append(lease_id)
        return free

    def settle(self, upto: int, held: Collection[int]) -> list[int]:
        """The peer uses none of the numbers up to `upto` but those held; returns leases that nobody uses any more."""
        if upto >= self._detour:
            self._detour = -1  # it was received, however long it is held: mostly until the next one comes
        held, unused = frozenset(held), []
        for number in self._leases:
            if number > upto:
                break
            if number not in held:
                unused.append(number)
        return self._returned(unused)

    def returned(self, number: int) -> list[int]:
        """The peer does not use this one, whatever it reports; returns leases that nobody uses any more."""
        return self._returned([number]) if number in self._leases else []

    def read(self, board: Sequence[int], thorough: bool = False) -> list[int]:
        """The peer uses none of the numbers on its board; returns leases that nobody uses any more.

        Args:
            board: place n % len(board) holds n + 1 for each number n that was given back.
            thorough: look at all numbers; else at the oldest and, behind many that are held, at the newest: mostly
                what is sent next is given back next.
        """
        total = len(self._leases)
        unused = self._on_board(board, self._leases, total if thorough else _LOOKED_AT)
        if total > _LOOKED_AT and not thorough:
            unused += self._on_board(board, reversed(self._leases), min(_LOOKED_AT, total - _LOOKED_AT))
        return self._returned(unused) if unused else unused

    def _on_board(self, board: Sequence[int], numbers: Iterable[int], left: int) -> list[int]:
        places, unused = len(board), []
        for number in numbers:
            if not left:
                break
            left -= 1
            at = number
            if board[at % places] == at + 1:
                unused.append(number)
        return unused

    def _returned(self, numbers: list[int]) -> list[int]:
        free = []
        for number in numbers:
            lease_id = self._leases.pop(number)
            count = self._sent[lease_id] - 1
            if count:
                self._sent[lease_id] = count
            else:
                del self._sent[lease_id]
                if lease_id in self._done:
                    self._done.discard(lease_id)
                    free.append(lease_id)
        return free
