"""The book of pages: shared by exactly what texts have in common, never lost, never given to two texts at once."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sled.pages import PagePool, PageTable


def hold(pool, tokens, scope=None) -> PageTable:
    """A text that is found as far as it goes, and computed and named from there."""
    table = PageTable(scope)
    pool.find(table, tokens, len(tokens))
    assert pool.extend(table, len(tokens))
    pool.name(table, tokens, len(tokens))
    return table


def counts(pool):
    return pool.num_free, pool.num_cached, pool.num_held, pool.num_shared


def test_pages_are_shared_hand_worked():
    pool = PagePool(num_pages=8, page_tokens=2)
    first = hold(pool, [1, 2, 3, 4, 5])
    assert (first.num_named, counts(pool)) == (2, (5, 0, 3, 0))
    second = hold(pool, [1, 2, 3, 4, 9, 9])
    assert second.pages[:2] == first.pages[:2]
    assert second.pages[2] != first.pages[2]
    assert counts(pool) == (4, 0, 4, 2)
    pool.release(first)
    assert counts(pool) == (5, 0, 3, 0)  # its last page was not full: nobody can find it
    pool.release(second)
    assert counts(pool) == (5, 3, 0, 0)
    third = PageTable(None)
    assert pool.find(third, [1, 2, 3, 4, 9, 9], 5) == 4  # the page of 9, 9 would be the sixth position
    assert counts(pool) == (5, 1, 2, 0)


def test_same_page_after_another_prefix_is_not_the_same_page():
    pool = PagePool(num_pages=8, page_tokens=2)
    hold(pool, [1, 2, 3, 4])
    other = PageTable(None)
    assert pool.find(other, [9, 9, 3, 4], 4) == 0
    assert pool.find(other, [3, 4, 1, 2], 4) == 0


def test_scopes_do_not_share():
    pool = PagePool(num_pages=8, page_tokens=2)
    hold(pool, [1, 2], scope="me")
    assert pool.find(PageTable("you"), [1, 2], 2) == 0
    assert pool.find(PageTable("me"), [1, 2], 2) == 2


def test_texts_computed_at_once_are_one_page_afterwards():
    pool = PagePool(num_pages=4, page_tokens=2)
    first, second = PageTable(None), PageTable(None)
    assert pool.extend(first, 3)
    assert pool.extend(second, 3)
    assert pool.num_free == 0
    pool.name(first, [1, 2, 3], 3)
    pool.name(second, [1, 2, 3], 3)
    assert first.pages[0] == second.pages[0]
    assert counts(pool) == (1, 0, 3, 1)


def test_longest_unused_text_is_reused_from_its_end():
    pool = PagePool(num_pages=4, page_tokens=2)
    old, new = hold(pool, [1, 2, 3, 4]), hold(pool, [5, 6, 7, 8])
    pool.release(old)
    pool.release(new)
    table = PageTable(None)
    assert pool.extend(table, 2)
    assert [pool.find(PageTable(None), text, 4) for text in ([1, 2, 3, 4], [5, 6, 7, 8])] == [2, 4]


def test_text_that_returned_is_used_again():
    """Being found counts as use: the other one is reused first."""
    pool = PagePool(num_pages=4, page_tokens=2)
    for text in ([1, 2, 3, 4], [5, 6, 7, 8], [1, 2, 3, 4]):
        pool.release(hold(pool, text))
    assert pool.extend(PageTable(None), 4)
    assert [pool.find(PageTable(None), text, 4) for text in ([1, 2, 3, 4], [5, 6, 7, 8])] == [4, 0]


def test_reused_page_does_not_bring_back_what_followed_its_old_text():
    """Page numbers return, so a name must not be made of them."""
    pool = PagePool(num_pages=2, page_tokens=2)
    pool.release(hold(pool, [1, 2, 3, 4]))
    hold(pool, [7, 8])
    assert pool.find(PageTable(None), [7, 8, 3, 4], 4) == 2


def test_too_few_pages_change_nothing():
    pool = PagePool(num_pages=3, page_tokens=2)
    table = hold(pool, [1, 2, 3])
    assert not pool.extend(table, 7)
    assert (len(table.pages), counts(pool)) == (2, (1, 0, 2, 0))
    assert pool.extend(table, 6)


def test_trim_gives_back_drafts_and_keeps_what_is_named():
    pool = PagePool(num_pages=4, page_tokens=2)
    table = PageTable(None)
    pool.extend(table, 8)
    pool.name(table, [1, 2, 3, 4, 5, 6, 7, 8], 3)
    pool.trim(table, 3)
    assert len(table.pages) == 2
    pool.trim(table, 0)
    assert len(table.pages) == 1
    assert table.frozen() == tuple(table.pages)


def test_forgotten_text_is_not_found():
    pool = PagePool(num_pages=4, page_tokens=2)
    pool.release(hold(pool, [1, 2, 3, 4]), forget=True)
    assert counts(pool) == (4, 0, 0, 0)
    assert pool.find(PageTable(None), [1, 2], 2) == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(6, 24))
def test_pages_conserve_and_hold_one_text_each(seed, size, num_pages):
    """Random texts over two tokens come, grow, shrink and go; what a page holds is checked against a copy of it."""
    rng = random.Random(seed)
    pool, texts, contents = PagePool(num_pages, size), {}, {}
    for number in range(120):
        action = rng.choice(("open", "grow", "grow", "close", "forget"))
        if action == "open" and len(texts) < 5:
            table, text = PageTable(None), [rng.randrange(2) for _ in range(rng.randrange(1, 5 * size))]
            there = pool.find(table, text, len(text) - 1)
            held = [contents[page] for page in table.pages]
            assert [token for page in held for token in page] == text[:there]
            texts[number] = [table, text, there]
        elif texts:
            key = rng.choice(list(texts))
            table, text, computed = texts[key]
            if action == "grow":
                drafts = rng.randrange(5)
                if pool.extend(table, len(text) + drafts):
                    for pos in range(computed, len(text)):
                        page = table.pages[pos // size]
                        assert page not in {p for t, _, _ in texts.values() if t is not table for p in t.pages}
                        contents[page] = [*contents.get(page, [])[: pos % size], text[pos]]
                    texts[key][2] = len(text)
                    pool.name(table, text, len(text))
                    pool.trim(table, len(text))
                    text.append(rng.randrange(2))
            else:
                pool.release(table, forget=action == "forget")
                del texts[key]
        held = {page for table, _, _ in texts.values() for page in table.pages}
        times = [page for table, _, _ in texts.values() for page in table.pages]
        assert pool.num_held == len(held)
        assert pool.num_shared == sum(times.count(page) > 1 for page in held)
        assert pool.num_free + pool.num_cached + pool.num_held == num_pages
    for table, _, _ in texts.values():
        pool.release(table)
    assert pool.num_held == 0
    assert pool.extend(PageTable(None), num_pages * size), "every page can be had"


@pytest.mark.parametrize("num_tokens", [0, 1, 2])
def test_no_more_pages_than_positions_need(num_tokens):
    pool = PagePool(num_pages=4, page_tokens=2)
    table = PageTable(None)
    assert pool.extend(table, num_tokens)
    assert len(table.pages) == (num_tokens + 1) // 2


def test_page_that_was_forgotten_does_not_bring_back_what_followed_it():
    """Page numbers return, and here what followed outlives its beginning: names must not be made of them."""
    pool = PagePool(num_pages=2, page_tokens=2)
    whole, beginning = hold(pool, [1, 2, 3, 4]), PageTable(None)
    pool.find(beginning, [1, 2], 2)
    pool.release(whole)
    pool.release(beginning, forget=True)
    assert pool.find(PageTable(None), [1, 2, 3, 4], 4) == 0
    hold(pool, [7, 8])
    assert pool.find(PageTable(None), [7, 8, 3, 4], 4) == 2
