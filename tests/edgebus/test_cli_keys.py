"""`edgebus allow`, `deny`, `keys` and `rotate` as a user meets them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import edgebus


def run(*arguments, status=0):
    code = "from edgebus.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == status, done.stderr
    assert done.stderr.count("\n") == (status != 0)
    return done.stderr if status else done.stdout


@pytest.fixture
def keys(tmp_path):
    for name in ("server", "phone"):
        edgebus.generate_keys(tmp_path / name)
    return tmp_path


def test_permissions_are_given_shown_and_taken(keys):
    server, phone = keys / "server", keys / "phone" / "node.key"
    given = ("--services", "sled.*", "--requests-per-s", "5", "--bytes-per-s", "1MB", "--until", "2031-12-31")
    assert json.loads(run("allow", server, phone, *given, "--json"))["added"] == 1
    assert json.loads(run("allow", server, phone, "--bytes-per-s", "none", "--deny", "sled.admin", "--json")) == {
        "file": str(server / "allowed_keys"),
        "added": 0,
        "updated": 1,
        "given": 1,
    }
    [row] = json.loads(run("keys", server, "--json"))["keys"]
    assert row == {
        "line": 2,
        "key": edgebus.read_public_key(phone),
        "name": "phone",
        "services": "sled.*",
        "deny": "sled.admin",
        "requests_per_s": "5",
        "burst": "",
        "bytes_per_s": "",
        "bytes_burst": "",
        "max_links": "",
        "until": "2031-12-31",
        "state": "ok",
    }
    table = run("keys", server)
    for shown in ("phone", "sled.*", "sled.admin", edgebus.load_keys(server).public):
        assert shown in table
    assert json.loads(run("deny", server, "phone", "--json"))["removed"] == [row["key"]]
    assert json.loads(run("keys", server, "--json"))["keys"] == []


def test_lines_that_allow_nobody_are_shown_without_their_text(keys):
    server = keys / "server"
    phone = edgebus.read_public_key(keys / "phone" / "node.key")
    (server / "allowed_keys").write_text(f"passphrase hunter2\n{phone} phone until=2001-01-01\n{'0' * 40} x y=1\n")
    states = [row["state"] for row in json.loads(run("keys", server, "--json"))["keys"]]
    assert states[0] == "line 1 allows nobody: it does not start with a key of 40 characters"
    assert states[1] == "expired"
    assert "line 3 allows nobody: an option is unknown" in states[2]
    assert "hunter2" not in run("keys", server)


def test_errors_are_one_line_and_exit_2(keys):
    server, phone = keys / "server", keys / "phone" / "node.key"
    assert "bytes_per_s=fast cannot work" in run("allow", server, phone, "--bytes-per-s", "fast", status=2)
    assert "no allow-list" in run("deny", server, "phone", status=2)
    assert "edgebus allow" in run("keys", server, status=2)
    run("allow", server, phone)
    assert "no key and no name" in run("deny", server, "laptop", status=2)
    assert "no key waits" in run("rotate", server, "--activate", status=2)
    assert "give one of them" in run("rotate", server, "--activate", "--force", status=2)
    assert "edgebus keygen" in run("rotate", keys / "nowhere", status=2)


def test_rotation_prints_its_steps_and_they_work(keys):
    server, phone = keys / "server", keys / "phone"
    run("allow", server, phone / "node.key", "--services", "sled.*")
    old = edgebus.load_keys(phone).public
    steps = run("rotate", phone)
    assert "edgebus allow SERVER_DIR node.key.new --like=" in steps
    run("allow", server, phone / "node.key.new", f"--like={old}")
    run("allow", server, phone / "node.key", "--until=2001-01-01")
    made = json.loads(run("rotate", phone, "--json"))
    assert (made["public_key"], made["made"]) == (old, False)
    assert json.loads(run("rotate", phone, "--activate", "--json")) == {
        "public_key": made["waiting"],
        "waiting": None,
        "previous": old,
        "made": True,
    }
    allow = edgebus.AllowList(server / "allowed_keys")
    assert (allow.permits(old), allow.permits(made["waiting"])) == (False, True)
    assert allow.grant(made["waiting"]).services == ("sled.*",)
    assert [row["name"] for row in json.loads(run("keys", server, "--json"))["keys"]] == ["phone", "phone"]
    for command in ("deny", "keys", "rotate"):
        assert f"Example: edgebus {command}" in " ".join(run(command, "--help").split())


def test_secret_key_file_is_not_taken_for_a_public_one(keys):
    server, secret = keys / "server", keys / "phone" / "node.key_secret"
    assert f"give {keys / 'phone' / 'node.key'}, the public one" in run("allow", server, secret, status=2)
    assert not (server / "allowed_keys").exists()


def test_text_that_is_no_list_is_left_as_it_is(keys):
    phone = keys / "phone" / "node.key"
    for name, text in (
        ("junk", "all my notes\nof a year\n"),
        ("allow.txt", (keys / "server" / "node.key").read_text()),
    ):
        (keys / name).write_text(text)
        assert "is no allow-list" in run("allow", keys / name, phone, status=2)
        assert (keys / name).read_text() == text
    for name, text in (("empty", ""), ("comments", "# mine\n\n"), ("mixed", f"nonsense\n{'0' * 40}\n")):
        (keys / name).write_text(text)
        assert "added 1 of 1 key" in run("allow", keys / name, phone)


def test_recordings_that_cannot_be_opened_say_why(keys):
    assert "Is a directory; give the path of a file" in run("replay", keys, "tcp://h:1", "--insecure", status=2)
    with edgebus.Node("server", insecure=True) as node:
        said = run("record", node.bind("tcp://127.0.0.1:0"), keys / "none" / "x", "--insecure", status=2)
    assert f"cannot write {keys / 'none' / 'x'}: No such file or directory; check the path" in said
