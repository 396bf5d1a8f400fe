"""`sled generate` without a server, and with saved answers."""

from __future__ import annotations

import io
import json

import msgspec
import pytest
from typer.testing import CliRunner

from edgebus.testing.proxy import Proxy
from sled.cli.app import app
from sled.cli.showing import Screen
from sled.errors import ParameterError, StateUnusable
from sled.events import Retracted, Unverified
from sled.saved import pack, unpack
from sled.server import FixedWindow
from sled.testing import ToyTarget
from sled.types import Sampling, Token

TEXT = "hello hello hello"
RIGHT = ToyTarget().plain_answer(ToyTarget().codec.encode(TEXT, chat=False), Sampling(), 12)


class Cut(FixedWindow):
    """Cuts the device off after some tokens."""

    def __init__(self, proxy, after):
        super().__init__(0)
        self.proxy, self.left = proxy, after

    def verdict(self, session_id, drafted, accepted):
        self.left -= 1
        if self.left == 0:
            self.proxy.refuse()
            self.proxy.cut()


def run(served, server, *words):
    keys = ["--server-key", str(served.directory / "server" / "node.key"), "--keys", str(served.directory / "device")]
    options = ["--server", server, *keys]
    return CliRunner(env={"XDG_CACHE_HOME": str(served.directory)}).invoke(
        app, ["generate", *words, *options, "--drafter", "ngram", "--max-tokens", "12", "--raw"], catch_exceptions=True
    )


@pytest.mark.net
def test_saved_answer_is_resumed_by_the_command(served, tmp_path):
    file = tmp_path / "answer.state"
    with served.serving() as endpoint:
        first = run(served, endpoint, TEXT, "--save", str(file), "--json")
        assert json.loads(first.stdout)["tokens"] == RIGHT
        state = unpack(file.read_bytes(), "x")
        file.write_bytes(pack(msgspec.structs.replace(state, answer=RIGHT[:5], finish="")))
        again = run(served, endpoint, "--resume", str(file), "--events")
    lines = [json.loads(line) for line in again.stdout.splitlines()]
    assert [line["token"] for line in lines if line["event"] == "token"] == RIGHT[5:]
    assert lines[-1]["tokens"] == RIGHT
    assert again.exit_code == 0


@pytest.mark.net
def test_unverified_end_is_told_apart_and_is_status_1(served):
    with Proxy(1) as proxy, served.serving(policy=Cut(proxy, 4)) as real:
        proxy.target_port = int(real.rpartition(":")[2])
        words = (TEXT, "--on-loss", "release", "--release-after", "0", "--wait", "0.1", "--events")
        result = run(served, proxy.endpoint, *words)
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.exit_code == 1
    answer = lines[-1]
    assert answer["finish_reason"] == ""
    assert answer["tokens"] == RIGHT[: len(answer["tokens"])]
    assert "server_lost" in [line["event"] for line in lines]
    assert answer["unverified"] == [line["token"] for line in lines if line["event"] == "unverified"]


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ((), "give a prompt, or --resume FILE"),
        (("hi", "--resume", "x"), "give a prompt, or --resume FILE"),
        (("--resume", "x", "--save", "y"), "leave --save out"),
        (("hi", "--on-loss", "pray"), "on-loss is 'pray'"),
    ],
)
def test_words_that_contradict_each_other_are_refused(tmp_path, words, match):
    result = CliRunner().invoke(app, ["generate", *words, "--server", "tcp://127.0.0.1:1", "--insecure"])
    assert isinstance(result.exception, ParameterError)
    with pytest.raises(ParameterError, match=match):
        raise result.exception


@pytest.mark.net
def test_missing_file_is_an_error_with_its_name(served, tmp_path):
    with served.serving() as endpoint:
        result = run(served, endpoint, "--resume", str(tmp_path / "none"))
    assert isinstance(result.exception, StateUnusable)


def test_screen_without_colour_has_committed_text_alone():
    screen = Screen(io.StringIO(), colour=False)
    for event in (Unverified(1, 5, "a"), Retracted(5), Token(9, 5, True, "c")):
        screen.tell(event)
    assert screen.out.getvalue() == "c"


def test_screen_lets_nothing_drive_the_terminal():
    screen = Screen(io.StringIO(), colour=True)
    screen.tell(Unverified(1, 5, "\x1b[2J"))
    screen.tell(Token(2, 6, False, "never written: it was shown before"))
    screen.tell(Token(3, 7, False, "\x07b"))
    assert screen.out.getvalue() == "\x1b[33m\ufffd[2J\x1b[0m\ufffdb"
