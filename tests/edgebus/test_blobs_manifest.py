"""Addresses and manifests: what they are by hand, and what no manifest may claim."""

from __future__ import annotations

import struct
from hashlib import blake2b

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgebus.blobs.manifest import (
    MAX_CHUNKS,
    MAX_HEAD_BYTES,
    BlobId,
    Head,
    Manifest,
    ManifestBuilder,
    content_hash,
    manifest_bytes,
    manifest_of,
)

SMALL = 4096


def h(person, data):
    return blake2b(data, digest_size=32, person=person).digest()


def address_of(head):
    """The address under which somebody hands out a head of his own making."""
    return BlobId(h(b"edgebus.blobhead", head).hex())


def test_address_is_worked_out_by_hand():
    content = b"a" * SMALL + b"b"
    page = h(b"edgebus.blobdata", b"a" * SMALL) + h(b"edgebus.blobdata", b"b")
    head = b"EBM1" + struct.pack("<IQ", SMALL, 4097) + h(b"edgebus.blobpage", page)
    manifest = manifest_of(content, SMALL)
    assert manifest.blob_id == address_of(head)
    assert manifest.encode() == head + page
    assert manifest.page(0) == page
    assert (manifest.size, manifest.num_chunks, manifest.offset(1), manifest.head.chunk_size(1)) == (4097, 2, 4096, 1)


def test_addresses_of_known_content_stay_as_they_are():
    assert manifest_of(b"hello").blob_id == "d2b6fea2cc2d670348e552ff7341b961b8582d43387acb6c1a94953c6c4bb9d0"
    assert manifest_of(b"").blob_id == "9c9ef23c254bd3e1cffc46b9b420a0fc96584cecb89c92fcb94b712cbd89a0dc"


def test_content_hash_is_that_of_b2sum():
    assert content_hash(b"abc") == "bddd813c634239723171ef3fee98579b94964e3bb1cb3e427262c8c068d52319"


def test_content_of_several_pages_is_proven_page_by_page():
    manifest = manifest_of(bytes(SMALL * 4096 + 1), SMALL)
    assert (manifest.head.num_pages, manifest.head.page_size(0), manifest.head.page_size(1)) == (2, 131072, 32)
    assert manifest.head.has_page(1, manifest.page(1))
    assert not manifest.head.has_page(0, manifest.page(1))
    assert not manifest.head.has_page(1, manifest.page(1) + b"x")
    assert manifest.head.manifest_bytes == len(manifest.encode()) == manifest_bytes(manifest.size, SMALL)
    assert Manifest.decode(manifest.encode(), manifest.blob_id).page(1) == manifest.page(1)


@pytest.mark.parametrize(
    ("chunk_bytes", "size", "num_hashes"),
    [
        (1 << 20, 1 << 60, 1),
        (1 << 20, (1 << 64) - 1, 256),
        (1 << 20, (MAX_CHUNKS << 20) + 1, 256),
        (1 << 20, 5, 0),
        (1 << 20, 5, 2),
        (1 << 20, 0, 1),
        (1, 5, 1),
        (0, 5, 1),
        (5000, 5, 1),
        (1 << 23, 5, 1),
    ],
)
def test_head_that_claims_the_impossible_is_not_believed_though_its_hash_is_right(chunk_bytes, size, num_hashes):
    head = b"EBM1" + struct.pack("<IQ", chunk_bytes, size) + bytes(32 * num_hashes)
    with pytest.raises(ValueError, match="cannot be"):
        Head.decode(head, address_of(head))


@pytest.mark.parametrize("head", [b"", b"EBM1", bytes(16), b"EBM2" + struct.pack("<IQ", SMALL, 0)])
def test_head_of_another_format_is_not_believed(head):
    with pytest.raises(ValueError, match="head of blob"):
        Head.decode(head, address_of(head))


def test_head_over_its_bound_is_not_even_hashed():
    head = bytes(MAX_HEAD_BYTES + 1)
    with pytest.raises(ValueError, match="8209 bytes are not"):
        Head.decode(head, address_of(head))


@pytest.mark.parametrize("text", ["", "ab", "A" * 64, "g" * 64, "a" * 65, "a" * 63 + "\n", "../" + "a" * 61])
def test_address_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="64 lower-case"):
        BlobId(text)


@pytest.mark.parametrize("chunk_bytes", [0, 2048, 5000, 1 << 23])
def test_chunk_size_that_cannot_be_is_refused(chunk_bytes):
    with pytest.raises(ValueError, match="power of two"):
        ManifestBuilder(chunk_bytes)


@given(st.binary(max_size=3 * SMALL), st.integers(0, 2**31))
def test_any_changed_byte_of_a_manifest_or_chunk_shows(content, place):
    manifest = manifest_of(content, SMALL)
    encoded = manifest.encode()
    assert Manifest.decode(encoded, manifest.blob_id).encode() == encoded
    changed = bytearray(encoded)
    changed[place % len(changed)] ^= 1
    for wrong in (bytes(changed), encoded[:-1], encoded + b"\0", b""):
        with pytest.raises(ValueError, match="not the"):
            Manifest.decode(wrong, manifest.blob_id)
    for index in range(manifest.num_chunks):
        chunk = bytearray(content[manifest.offset(index) :][:SMALL])
        assert manifest.has_chunk(index, chunk)
        chunk[place % len(chunk)] ^= 1
        assert not manifest.has_chunk(index, chunk)
        assert not manifest.has_chunk(index, chunk[:-1])


def test_chunk_never_passes_for_a_page_or_head():
    """Content that is itself a manifest has another address than the blob it describes."""
    inner = manifest_of(b"x" * 100, SMALL)
    outer = manifest_of(inner.encode(), SMALL)
    assert outer.blob_id != inner.blob_id
    with pytest.raises(ValueError, match="not the head"):
        Head.decode(inner.page(0), outer.blob_id)
