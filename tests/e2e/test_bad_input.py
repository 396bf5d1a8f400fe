"""Wrong keys, wrong addresses, wrong words: one line, the right exit status, no hang; and the server goes on."""

from __future__ import annotations

import os
import socket
import stat
import time

import pytest

from tests.e2e.conftest import run

pytest.importorskip("torch")

pytestmark = [pytest.mark.model, pytest.mark.net, pytest.mark.timeout(180)]


def assert_one_line(ran, status, *words):
    assert ran.status == status, ran.err
    lines = [line for line in ran.err.splitlines() if line.strip() and not line.startswith("loading")]
    assert len(lines) == 1, ran.err
    assert "Traceback" not in ran.err
    for word in words:
        assert word in lines[0], lines[0]


def assert_still_serving(generate):
    assert generate("Hi", "--json", max_tokens="2").status == 0


def test_key_not_allowed(generate, keys):
    started_at = time.monotonic()
    assert_one_line(generate("Hi", keys=keys / "stranger"), 1, "edgebus allow")
    assert time.monotonic() - started_at < 15
    assert_still_serving(generate)


def test_wrong_server_key(generate, keys):
    assert_one_line(generate("Hi", server_key=keys / "stranger" / "node.key"), 1, "key")
    assert_still_serving(generate)


def test_plaintext_device_is_not_served(generate):
    assert_one_line(generate("Hi", "--insecure", server_key=None, keys=None, timeout="5"), 1)
    assert_still_serving(generate)


def test_server_not_there(generate):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    started_at = time.monotonic()
    assert_one_line(generate("Hi", server=endpoint, timeout="2"), 1, endpoint)
    assert time.monotonic() - started_at < 12


def test_prompt_too_long(generate):
    assert_one_line(generate("word " * 9000, timeout="60"), 1, "shorten")
    assert_still_serving(generate)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"temperature": "-1"}, "temperature"),
        ({"temperature": "nan"}, "temperature"),
        ({"top_p": "0"}, "top_p"),
        ({"top_k": "-3"}, "top_k"),
        ({"seed": "-1"}, "seed"),
        ({"window": "-1"}, "window"),
        ({"window": "1000"}, "window"),
        ({"window": "many"}, "window"),
        ({"confidence": "2"}, "confidence"),
        ({"max_tokens": "0"}, "max_tokens"),
        ({"max_tokens": "99999999999"}, "max_tokens"),
        ({"max_tokens": "x"}, "max-tokens"),
        ({"timeout": "0"}, "timeout"),
        ({"timeout": "inf"}, "timeout"),
        ({"timeout": "nan"}, "timeout"),
        ({"timeout": "1e9"}, "timeout"),
        ({"temperature": "1e-31"}, "temperature"),
        ({"drafter": "no-such"}, "ngram"),
        ({"keys": "/no/such"}, "edgebus keygen"),
        ({"server_key": "nonsense"}, "key"),
        ({"server": "htp:/nowhere"}, "tcp://"),
        ({"keys": None}, "keys"),
    ],
)
def test_usage_errors(generate, options, word):
    assert_one_line(generate("Hi", **options), 2, word)


def test_empty_prompt(generate):
    assert_one_line(generate(""), 2, "prompt")


def test_prompt_that_is_no_text(generate):
    assert_one_line(generate("\udcff\udcfe"), 2, "UTF-8")


def test_prompt_over_the_protocols_bound(generate):
    ran = generate("-", stdin="word " * 300_000)
    assert_one_line(ran, 2, "shorten")


@pytest.mark.parametrize(
    ("arguments", "status", "word"),
    [
        (["--model", "no-such", "--bind", "tcp://127.0.0.1:0", "--insecure"], 2, "smollm2-135m"),
        (["--model", "smollm2-135m", "--bind", "tcp://127.0.0.1:0"], 2, "--keys"),
        (["--model", "smollm2-135m", "--bind", "nowhere", "--insecure"], 2, "tcp://"),
        (
            ["--model", "smollm2-135m", "--bind", "tcp://127.0.0.1:0", "--insecure", "--max-window", "100"],
            2,
            "max-window",
        ),
        (
            ["--model", "smollm2-135m", "--bind", "tcp://127.0.0.1:0", "--insecure", "--dtype", "int1"],
            2,
            "dtype",
        ),
        (["--bind", "tcp://127.0.0.1:0"], 2, "--model"),
        (["--model", "smollm2-135m", "--bind", "tcp://127.0.0.1:0", "--insecure", "--kv-bytes", "much"], 2, "kv_bytes"),
    ],
)
def test_serve_usage_errors(arguments, status, word):
    assert_one_line(run("sled.cli", "serve", *arguments), status, word)


def test_serve_on_a_taken_port(server):
    ran = run("sled.cli", "serve", "--model", "smollm2-135m", "--bind", server["endpoint"], "--insecure")
    assert_one_line(ran, 1, server["endpoint"])


def test_secret_key_readable_by_others_is_refused(generate, keys, tmp_path):
    for name in ("node.key", "node.key_secret"):
        (tmp_path / name).write_bytes((keys / "device" / name).read_bytes())
    os.chmod(tmp_path / "node.key_secret", 0o644)
    assert_one_line(generate("Hi", keys=tmp_path), 2, "chmod 600")


def test_keygen_writes_a_secret_only_we_can_read(tmp_path):
    ran = run("edgebus.cli", "keygen", tmp_path / "k", "--json")
    assert len(ran.json["public_key"]) == 40
    assert stat.S_IMODE((tmp_path / "k" / "node.key_secret").stat().st_mode) == 0o600
    assert_one_line(run("edgebus.cli", "keygen", tmp_path / "k"), 2, "--force")


def test_garbage_on_the_port_does_not_disturb(server, generate):
    host, port = server["endpoint"].removeprefix("tcp://").split(":")
    for junk in (
        b"GET / HTTP/1.1\r\n\r\n",
        bytes(range(256)) * 20,
        b"\xff" * 10 + b"\x7f" + b"\x03CURVE" + bytes(64),
    ):
        with socket.create_connection((host, int(port)), timeout=5) as raw:
            raw.sendall(junk)
    assert_still_serving(generate)


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "--help"], ["generate", "--help"]])
def test_help_teaches(arguments):
    ran = run("sled.cli", *arguments)
    assert ran.status == 0
    assert "sled" in ran.out
    if len(arguments) > 1:
        assert "Example" in ran.out
