"""The device's cache of pieces: what it gives back is what was fetched, and it is something to do without."""

import errno
import os

import pytest

from edgebus.blobs import BlobStoreFull, MemoryBlobs, messages, serve
from edgebus.blobs import store as stores
from qpart.pieces import address_of
from qpart.run.cache import PieceCache


class Link:
    """Answers questions about blobs at once; counts them."""

    def __init__(self, *contents):
        self.blobs, self.asked = MemoryBlobs(), []
        self.sizes = {bytes.fromhex(self.blobs.put(content)): len(content) for content in contents}

    def send_request(self, service, payload=b"", *, timeout_s=0):
        ask = messages.decode_ask(payload)
        self.asked.append(ask)
        self._answer = serve.answer(self.blobs, ask)
        return _Answered(self._answer)


class _Answered:
    def __init__(self, payload):
        self.payload = payload

    def result(self):
        return self

    def cancel(self):
        pass


def fetched(cache, link):
    return {address: bytes(content) for address, content in cache.fetch(link, link.sizes, 5).items()}


ALL = {address_of(content): content for content in (b"one", b"two" * 1000)}


def test_pieces_come_once_and_are_named(tmp_path):
    cache, link = PieceCache(tmp_path / "pieces"), Link(*ALL.values())
    assert cache.marks() == b""
    assert fetched(cache, link) == ALL
    assert len(link.asked) <= 2
    again = Link(*ALL.values())
    assert fetched(PieceCache(tmp_path / "pieces"), again) == ALL
    assert again.asked == []
    marks = PieceCache(tmp_path / "pieces").marks()
    assert {marks[:8], marks[8:]} == {address[:8] for address in ALL}


def test_the_latest_used_is_named_first(tmp_path):
    cache = PieceCache(tmp_path)
    for content in (b"one", b"two", b"one"):
        fetched(cache, Link(content))
    assert cache.marks() == address_of(b"one")[:8] + address_of(b"two")[:8]


@pytest.mark.parametrize("lost", [False, True])
def test_a_sparse_file_in_the_place_of_a_piece_is_not_hashed(tmp_path, monkeypatch, lost):
    cache, link = PieceCache(tmp_path), Link(*ALL.values())
    assert fetched(cache, link) == ALL
    cache = PieceCache(tmp_path)
    assert len(cache.marks()) == 16
    path = tmp_path / address_of(b"one").hex()
    if lost:
        path.with_name(f"{path.name}.manifest").unlink()
    os.truncate(path, 1 << 27)  # within the cache's bound
    monkeypatch.setattr(stores, "build", lambda *_: pytest.fail("it would be hashed whole"))
    assert fetched(cache, link) == ALL


def test_a_spoiled_file_is_fetched_again(tmp_path):
    cache, link = PieceCache(tmp_path), Link(b"piece")
    fetched(cache, link)
    (tmp_path / address_of(b"piece").hex()).write_bytes(b"other")
    assert fetched(cache, link) == {address_of(b"piece"): b"piece"}
    assert len(link.asked) == 2


def test_the_longest_unused_goes_first(tmp_path):
    cache = PieceCache(tmp_path, max_bytes=600)  # a manifest has 80 bytes
    for content in (b"a" * 150, b"b" * 150, b"c" * 150):
        fetched(cache, Link(content))
    assert cache.marks() == address_of(b"c" * 150)[:8] + address_of(b"b" * 150)[:8]


def test_other_files_are_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_bytes(b"x" * 1000)
    fetched(PieceCache(tmp_path, max_bytes=10), Link(b"y" * 20))
    assert (tmp_path / "notes.txt").exists()


def test_a_directory_that_cannot_be_made_costs_the_cache_only(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    cache = PieceCache(tmp_path / "file" / "pieces")
    assert fetched(cache, Link(*ALL.values())) == ALL
    assert cache.marks() == b""


@pytest.mark.parametrize("error", [OSError(errno.EIO, "input/output error"), BlobStoreFull("the disk is full")])
def test_a_disk_that_takes_nothing_costs_the_cache_only(tmp_path, monkeypatch, error):
    def write(*_):
        raise error

    monkeypatch.setattr(stores, "write_at", write)
    cache = PieceCache(tmp_path)
    assert fetched(cache, Link(*ALL.values())) == ALL
    assert cache.marks() == b""


def test_a_directory_that_went_away_costs_the_cache_only(tmp_path):
    cache = PieceCache(tmp_path / "pieces")
    fetched(cache, Link(b"one"))
    for path in (tmp_path / "pieces").iterdir():
        path.unlink()
    os.rmdir(tmp_path / "pieces")
    assert fetched(cache, Link(*ALL.values())) == ALL
    assert cache.marks() == b""


def test_more_than_the_sizes_say_is_refused(tmp_path):
    link = Link(b"x" * 1000)
    with pytest.raises(BlobStoreFull, match="max_bytes"):
        PieceCache(tmp_path).fetch(link, dict.fromkeys(link.sizes, 10), 5)
