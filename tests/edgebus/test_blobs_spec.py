"""The spec page shows what the code does, the pure parts are pure, the package brings no sockets."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import msgpack
import pytest

from edgebus.blobs import machine, messages
from edgebus.blobs.manifest import MAX_HEAD_BYTES, manifest_of
from edgebus.payloads import encode

ROOT = Path(__file__).parents[2]
SPEC = (ROOT / "docs/spec/bus-blobs.md").read_text()
HELLO = manifest_of(b"hello")
RAW = HELLO.blob_id.raw


def shown():
    """The bytes of every block of hexadecimal digits in the page."""
    blocks = "\n\n".join(re.findall(r"```text\n(.*?)```", SPEC, re.DOTALL)).split("\n\n")
    return [bytes.fromhex(block) for block in blocks if block.strip()]


def test_spec_shows_real_bytes_that_another_decoder_reads():
    manifest, ask_manifest, ask_chunk, ask_have, have, ask_contents, contents = shown()
    assert manifest == HELLO.encode()
    assert str(HELLO.blob_id) in SPEC
    assert [encode(each) for each in (messages.AskManifest(RAW), messages.AskChunk(RAW, 0))] == [
        ask_manifest,
        ask_chunk,
    ]
    assert msgpack.unpackb(ask_manifest) == [1, RAW]
    assert msgpack.unpackb(ask_chunk) == [3, RAW, 0]
    assert msgpack.unpackb(ask_have) == [4, [RAW]]
    assert msgpack.unpackb(have) == [[5]]
    assert messages.decode_ask(ask_have) == messages.AskHave((RAW,))
    assert encode(messages.HaveAnswer((5,))) == have
    assert msgpack.unpackb(ask_contents) == [5, [RAW, RAW[::-1]]]
    assert encode(messages.AskContents((RAW, RAW[::-1]))) == ask_contents
    assert messages.encode_contents((b"hello", None)) == contents
    assert contents == (5).to_bytes(4, "little") + b"hello" + b"\xff" * 4


def test_messages_of_another_encoder_and_a_newer_version_are_read():
    assert messages.decode_ask(msgpack.packb([2, RAW, 7, "new"])) == messages.AskPage(RAW, 7)
    answer = encode(messages.ManifestAnswer(HELLO.head.encode(), HELLO.page(0), b"hello"))
    assert msgpack.unpackb(answer) == [HELLO.head.encode(), HELLO.page(0), b"hello"]


@pytest.mark.parametrize(
    "payload",
    [
        [],
        [0, RAW],
        [6, RAW],
        [5, RAW],
        [5, []],
        [1, RAW[1:]],
        [3, RAW, -1],
        [3, RAW, 1 << 20],
        [2, RAW, 256],
        [4, [RAW] * 1025],
        [5, [RAW] * 1025],
    ],
)
def test_question_out_of_its_bounds_is_none(payload):
    with pytest.raises(ValueError, match="not a question"):
        messages.decode_ask(msgpack.packb(payload))


def test_largest_question_is_within_the_bound_the_spec_states():
    most = messages.AskHave((RAW,) * messages.MAX_NAMED)
    assert messages.decode_ask(encode(most)) == most
    assert f"{messages.MAX_ASK_BYTES:,} B" in SPEC
    assert f"{MAX_HEAD_BYTES:,} B" in SPEC


@pytest.mark.parametrize(
    ("payload", "asked"), [(b"", 1), (b"\0", 1), (b"\5\0\0\0hell", 1), (b"\0\0\0\0" * 3, 2), (b"\1\0\x10\0", 1)]
)
def test_contents_that_are_cut_off_or_too_many_are_refused(payload, asked):
    with pytest.raises(ValueError, match="content"):
        messages.decode_contents(payload, asked)


def test_spec_names_every_question_refusal_and_state():
    named = set(re.findall(r"`([a-z_]+)`", SPEC))
    made = set(re.findall(r'refuse\(\s*request, "(\w+)"', (ROOT / "edgebus/blobs/serve.py").read_text()))
    assert made | machine.PASSING | {"too_large"} <= named
    assert {"AskManifest", "AskPage", "AskChunk", "AskHave", "AskContents"} <= set(re.findall(r"Ask\w+", SPEC))
    assert all(f"| {state.value} |" in SPEC or f" {state.value} |" in SPEC for state in machine.State)


@pytest.mark.parametrize("name", ["manifest", "messages", "machine", "errors"])
def test_pure_modules_know_no_clock_disk_thread_or_chance(name):
    import importlib

    names = vars(importlib.import_module(f"edgebus.blobs.{name}"))
    assert not {"time", "threading", "random", "os", "socket", "secrets"} & set(names)


def test_package_loads_without_sockets():
    code = "import sys, edgebus.blobs; print('zmq' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"
