"""Pages of keys and values: who holds which, which of them are shared, and which are kept in case a text returns.

Pure: the pages themselves are the target's; this is only the book that is kept about them.
Source: paged keys and values, arXiv 2309.06180; a tree of shared prefixes with the least recently used leaf given up
first, arXiv 2312.07104.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

_Name = tuple[Hashable, bytes]


@dataclass(slots=True, eq=False)
class PageTable:
    """The pages of one text in order.

    Args:
        scope: texts of one scope share pages.
        pages: page of positions 0 .. page_tokens - 1, and so on.
        num_named: the first so many are full, committed and computed: other texts may share them.
        parent: what the next page's name begins with: the number of the last named one, at first the scope.
    """

    scope: Hashable
    pages: list[int] = field(default_factory=list)
    num_named: int = 0
    parent: Hashable = field(init=False)
    _frozen: tuple[int, ...] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.parent = self.scope

    def frozen(self) -> tuple[int, ...]:
        """The pages as a tuple, made again only if they changed."""
        if self._frozen is None:
            self._frozen = tuple(self.pages)
        return self._frozen

    def changed(self) -> None:
        """To be called by whoever changes `pages`."""
        self._frozen = None


class PagePool:
    """All pages of a target; every one is free, cached (nobody's, but its text can be found) or held.

    A page that is full of committed, computed text has a name: the number of the page before it and its own tokens,
    compared token by token, so that texts share exactly what they have in common. It is never written again. Cached
    pages are given up longest unused first, a text's end before its beginning.

    Args:
        num_pages: pages there are.
        page_tokens: positions in a page.

    >>> pool = PagePool(num_pages=4, page_tokens=2)
    >>> mine, yours = PageTable(None), PageTable(None)
    >>> pool.extend(mine, 5)
    True
    >>> pool.name(mine, [7, 8, 9, 10, 11], 5)
    >>> pool.find(yours, [7, 8, 9, 1], 3), yours.pages == mine.pages[:1]
    (2, True)
    """

    def __init__(self, num_pages: int, page_tokens: int) -> None:
        self.num_pages, self.page_tokens = num_pages, page_tokens
        self.num_shared = 0
        self._free = list(range(num_pages - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()  # longest unused first
        self._references = [0] * num_pages
        self._pages: dict[_Name, int] = {}
        self._names: dict[int, _Name] = {}
        self._numbers: dict[int, int] = {}  # of a named page; given once, so that no name outlives what it stands for
        self._last_number = 0

    @property
    def num_tokens(self) -> int:
        """Positions of all pages."""
        return self.num_pages * self.page_tokens

    @property
    def num_free(self) -> int:
        """Pages that hold nothing."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Pages nobody holds whose text can be found; they are reused when no page is free."""
        return len(self._cached)

    @property
    def num_held(self) -> int:
        """Pages that one text or several hold."""
        return self.num_pages - len(self._free) - len(self._cached)

    def find(self, table: PageTable, tokens: Sequence[int], limit: int) -> int:
        """Hold further pages that carry this very text already.

        Args:
            table: nothing but its named pages is computed.
            tokens: the committed text.
            limit: positions at most.

        Returns:
            Positions whose keys and values are there now.
        """
        while (table.num_named + 1) * self.page_tokens <= limit:
            page = self._pages.get(self.next_name(table, tokens))
            if page is None:
                break
            self.trim(table, 0)
            self._hold(page)
            table.pages.append(page)
            table.changed()
            table.num_named, table.parent = table.num_named + 1, self._numbers[page]
        return table.num_named * self.page_tokens

    def next_name(self, table: PageTable, tokens: Sequence[int]) -> _Name:
        """Name of the first page that has none yet, were it full of this text."""
        start = table.num_named * self.page_tokens
        return table.parent, array("i", tokens[start : start + self.page_tokens]).tobytes()

    def extend(self, table: PageTable, num_tokens: int) -> bool:
        """Hold pages for so many positions, cached ones if none is free; False, and no change, if there are too few."""
        missing = -(-num_tokens // self.page_tokens) - len(table.pages)
        if missing <= 0:
            return True
        if missing > len(self._free) + len(self._cached):
            return False
        for _ in range(missing):
            page = self._free.pop() if self._free else self._reuse()
            self._hold(page)
            table.pages.append(page)
        table.changed()
        return True

    def trim(self, table: PageTable, num_tokens: int) -> None:
        """Give back the pages beyond so many positions; named ones stay."""
        keep = max(-(-num_tokens // self.page_tokens), table.num_named)
        if keep < len(table.pages):
            for page in reversed(table.pages[keep:]):
                self._let_go(page)
            del table.pages[keep:]
            table.changed()

    def name(self, table: PageTable, tokens: Sequence[int], num_computed: int) -> None:
        """Let others find the full pages among the first `num_computed` positions of a committed text.

        Where another text has computed the same page meanwhile, both hold that one from now on.
        """
        while (table.num_named + 1) * self.page_tokens <= num_computed:
            page, name = table.pages[table.num_named], self.next_name(table, tokens)
            known = self._pages.get(name)
            if known is None:
                known = page
                self._last_number += 1
                self._pages[name], self._names[page], self._numbers[page] = page, name, self._last_number
            else:
                self._hold(known)
                self._let_go(page)
                table.pages[table.num_named] = known
                table.changed()
            table.num_named, table.parent = table.num_named + 1, self._numbers[known]

    def release(self, table: PageTable, *, forget: bool = False) -> None:
        """Give back all pages.

        Args:
            table: empty afterwards.
            forget: nobody shall find them again, since what they hold is not to be trusted.
        """
        for page in reversed(table.pages):  # the end of a text goes first, so that what is cached is always a prefix
            if forget:
                self._unname(page)
            self._let_go(page)
        table.pages.clear()
        table.changed()
        table.num_named, table.parent = 0, table.scope

    def _hold(self, page: int) -> None:
        self._references[page] += 1
        if self._references[page] == 1:
            self._cached.pop(page, None)
        elif self._references[page] == 2:
            self.num_shared += 1

    def _let_go(self, page: int) -> None:
        self._references[page] -= 1
        if self._references[page] == 1:
            self.num_shared -= 1
        elif self._references[page] == 0:
            if page in self._names:
                self._cached[page] = None
            else:
                self._free.append(page)

    def _reuse(self) -> int:
        page, _ = self._cached.popitem(last=False)
        self._unname(page)
        return page

    def _unname(self, page: int) -> None:
        name = self._names.pop(page, None)
        if name is not None:
            del self._pages[name], self._numbers[page]
