"""The device's cache of pieces: what it gives back is what it was given, and it stays within its bound."""

import os

from qpart.pieces import content_id
from qpart.run.cache import PieceCache


def kept(cache, content):
    cache.put(content_id(content), content)
    return content_id(content)


def test_a_piece_comes_back(tmp_path):
    cache = PieceCache(tmp_path / "pieces")
    address = kept(cache, b"piece")
    assert cache.get(address) == b"piece"
    assert cache.addresses() == (address,)
    assert PieceCache(tmp_path / "pieces").get(address) == b"piece"


def test_what_is_not_there_is_none(tmp_path):
    cache = PieceCache(tmp_path / "pieces")
    assert cache.get(bytes(16)) is None
    assert cache.addresses() == ()


def test_a_spoiled_file_is_removed(tmp_path):
    cache = PieceCache(tmp_path)
    address = kept(cache, b"piece")
    (tmp_path / f"{address.hex()}.piece").write_bytes(b"other")
    assert cache.get(address) is None
    assert cache.addresses() == ()


def test_the_longest_unused_goes_first(tmp_path):
    cache = PieceCache(tmp_path, max_bytes=250)
    first, second = kept(cache, b"a" * 100), kept(cache, b"b" * 100)
    for age, address in ((50, first), (100, second)):
        os.utime(tmp_path / f"{address.hex()}.piece", (1e9 - age, 1e9 - age))
    third = kept(cache, b"c" * 100)
    assert set(cache.addresses()) == {first, third}


def test_other_files_are_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_bytes(b"x" * 1000)
    cache = PieceCache(tmp_path, max_bytes=10)
    kept(cache, b"y" * 20)
    assert (tmp_path / "notes.txt").exists()


def test_a_directory_that_cannot_be_written_only_forgets(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    cache = PieceCache(tmp_path / "file" / "pieces")
    assert cache.get(kept(cache, b"piece")) is None
