"""Publishers' keys: files, signatures, and that nothing unsigned runs where a publisher is pinned."""

from __future__ import annotations

import stat
import sys

import pytest

import edgebus
from qpart.errors import SegmentRejected
from qpart.signing import generate_signing_key, load_signer, read_publisher, verify

SEGMENT = bytes(range(32))


@pytest.fixture
def keys(tmp_path):
    pytest.importorskip("nacl")
    generate_signing_key(tmp_path / "keys")
    return tmp_path / "keys"


def test_what_is_signed_verifies_and_nothing_else_does(keys, tmp_path):
    signer = load_signer(keys)
    signature = signer(SEGMENT)
    assert len(signature) == 64
    verify(signer.public, SEGMENT, signature)
    other = generate_signing_key(tmp_path / "other")
    for publisher, segment, given in (
        (signer.public, SEGMENT[::-1], signature),
        (signer.public, SEGMENT, signature[:-1] + bytes([signature[-1] ^ 1])),
        (signer.public, SEGMENT, signature[:63]),
        (signer.public, SEGMENT, bytes(64)),
        (other, SEGMENT, signature),
    ):
        with pytest.raises(SegmentRejected, match="not signed by the publisher"):
            verify(publisher, segment, given)
    with pytest.raises(SegmentRejected, match="--sign"):
        verify(signer.public, SEGMENT, b"")


def test_a_signature_is_for_segments_only(keys):
    """The key may sign other things: the context keeps them apart."""
    from nacl.signing import SigningKey, VerifyKey

    signer = load_signer(keys)
    VerifyKey(signer.public).verify(b"qpart segment 2\0" + SEGMENT, signer(SEGMENT))
    secret = bytes.fromhex((keys / "publisher.key_secret").read_text().split()[-1])
    with pytest.raises(SegmentRejected):
        verify(signer.public, SEGMENT, SigningKey(secret).sign(SEGMENT).signature)


def test_files_are_private_and_not_replaced_unasked(keys):
    assert stat.S_IMODE((keys / "publisher.key_secret").stat().st_mode) == 0o600
    assert stat.S_IMODE(keys.stat().st_mode) == 0o700
    with pytest.raises(edgebus.KeyFileError, match="--force"):
        generate_signing_key(keys)
    before = load_signer(keys).public
    assert generate_signing_key(keys, force=True) != before
    assert "secret" not in (keys / "publisher.key").read_text()
    assert load_signer(keys)._key is not None
    assert load_signer(keys).public.hex() in repr(load_signer(keys))


def test_publishers_are_read_from_files_and_digits(keys):
    public = load_signer(keys).public
    assert read_publisher(keys / "publisher.key") == read_publisher(str(keys / "publisher.key")) == public
    assert read_publisher(public.hex()) == public
    for wrong in (public.hex()[:-2], "node.key", "zz" * 32):
        with pytest.raises(edgebus.KeyFileError, match="publisher"):
            read_publisher(wrong)


def test_the_secret_file_is_no_publisher(keys):
    with pytest.raises(edgebus.KeyFileError, match=r"secret key.*give the public file publisher\.key"):
        read_publisher(keys / "publisher.key_secret")


def test_keys_that_others_can_read_or_that_are_damaged_are_refused(keys, tmp_path):
    secret = keys / "publisher.key_secret"
    secret.chmod(0o640)
    with pytest.raises(edgebus.KeyFileError, match="chmod 600"):
        load_signer(keys)
    secret.chmod(0o600)
    lines = secret.read_text().splitlines()
    secret.write_text(lines[1] + "\n")
    with pytest.raises(edgebus.KeyFileError, match="qpart keygen"):
        load_signer(keys)
    other = generate_signing_key(tmp_path / "other")
    secret.write_text(f"ed25519-public-key = {other.hex()}\n{lines[1]}\n")
    with pytest.raises(edgebus.KeyFileError, match="not of its secret half"):
        load_signer(keys)
    with pytest.raises(edgebus.KeyFileError, match="qpart keygen"):
        load_signer(tmp_path / "nowhere")


def test_without_the_library_nothing_is_accepted(monkeypatch, tmp_path):
    for name in ("nacl", "nacl.signing"):
        monkeypatch.setitem(sys.modules, name, None)
    for act in (lambda: verify(bytes(32), SEGMENT, bytes(64)), lambda: generate_signing_key(tmp_path / "keys")):
        with pytest.raises(edgebus.ConfigError, match=r"edgebus\[sign\]"):
            act()
