"""Answers in files: written whole, read with suspicion, gone on with where they stood."""

from __future__ import annotations

import hashlib
import json
import signal
import stat
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgebus
from edgebus.testing.proxy import Proxy
from sled.errors import AnswerIncomplete, StateUnusable
from sled.events import Retracted, Unverified
from sled.saved import MAGIC, Saved, check_target, pack, unpack
from sled.testing import ToyDrafter, ToyTarget, serving
from sled.types import Logprob, Message, Sampling, Terms, Token
from sled.window import Window

PROMPT = [5, 6, 7, 8, 5, 6]
SAMPLED = Sampling(temperature=0.8, top_k=20, top_p=0.95, seed=3)
NUM_TOKENS = 40
RIGHT = ToyTarget().plain_answer(PROMPT, SAMPLED, NUM_TOKENS)


def saved(**changes) -> Saved:
    base = Saved(
        "toy", b"toy 0", PROMPT, False, [], SAMPLED, Terms(40, ("END",)), PROMPT, [9, 8], [Logprob(-1.0, [(9, -1.0)])],
        "", [(4, 0.5)],
    )  # fmt: skip
    return msgspec.structs.replace(base, **changes)


# -- the file


def test_state_comes_back_as_it_was():
    for state in (
        saved(),
        saved(prompt="", messages=[Message("user", "hi")], prompt_tokens=[], answer=[], unverified=[]),
    ):
        assert unpack(pack(state), "x") == state


def test_file_is_laid_out_as_specified_hand_worked():
    content = pack(saved())
    assert content[:10] == b"SLEDSAVE\x01\x00"
    body = msgspec.msgpack.decode(content[26:])
    assert body[0:3] == ["toy", b"toy 0", PROMPT]
    assert body[7:9] == [PROMPT, [9, 8]]


@given(st.data())
def test_damaged_file_is_refused_whatever_the_damage(data):
    content = bytearray(pack(saved()))
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        at, by = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(1, 255))
        content[at] ^= by
    with pytest.raises(StateUnusable, match=r"(generate the answer again|save_to)"):
        unpack(bytes(content), "answer.state")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"answer": list(range(41))}, "41 tokens of at most 40"),
        ({"answer": list(range(40))}, "40 tokens of at most 40"),
        ({"prompt_tokens": []}, "an answer to no prompt"),
        ({"prompt": [], "prompt_tokens": [], "answer": [], "unverified": []}, "has no prompt"),
        ({"terms": Terms(0)}, "of at most 0"),
    ],
)
def test_state_that_cannot_be_is_refused(change, match):
    with pytest.raises(StateUnusable, match=match):
        unpack(pack(saved(**change)), "x")


def test_other_version_and_other_target_name_the_remedy():
    content = bytearray(pack(saved()))
    content[len(MAGIC)] = 9
    with pytest.raises(StateUnusable, match="of version 9, this program reads version 1"):
        unpack(bytes(content), "x")
    with pytest.raises(
        StateUnusable, match=r"target toy \(746f792030\).*runs big.*resume it at a server of that target"
    ):
        check_target(saved(), b"toy 1", "big", "x")


def test_foreign_body_with_a_right_checksum_is_refused():
    content = pack(saved())
    body = msgspec.msgpack.encode(["toy", 5])
    forged = content[:10] + hashlib.blake2b(body, digest_size=16).digest() + body
    with pytest.raises(StateUnusable, match="not what version 1 holds"):
        unpack(forged, "x")


# -- over the bus


@contextmanager
def device_of(served, error=0.3, **more):
    with (
        served.serving() as endpoint,
        served.device(endpoint, ToyDrafter(served.target, error=error), **more) as device,
    ):
        yield device


def begin(device, path, tokens=7, **more):
    """Some tokens of an answer that is then broken off."""
    options = {"max_tokens": NUM_TOKENS, "sampling": SAMPLED, "window": Window(3), **more}
    stream = device.generate(PROMPT, save_to=path, **options)
    iterator = iter(stream)
    got = [next(iterator) for _ in range(tokens)]
    stream.close()
    return stream, got


@pytest.mark.net
def test_answer_broken_off_is_gone_on_with_at_another_server(served, tmp_path):
    path = tmp_path / "answer.state"
    with device_of(served) as device:
        stream, got = begin(device, path, logprobs=2)
        with pytest.raises(AnswerIncomplete, match=r"resume it from .*answer\.state"):
            stream.answer()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    length = len(unpack(path.read_bytes(), "x").answer)
    assert length == len(got)
    with device_of(served) as device:
        stream = device.resume(path)
        rest = list(stream)
        answer = stream.answer()
    assert [token.pos for token in rest] == list(range(len(PROMPT) + length, len(PROMPT) + len(RIGHT)))
    assert [token.id for token in rest] == RIGHT[length:]
    assert answer.tokens == RIGHT
    assert answer.prompt_tokens == PROMPT
    assert len(answer.logprobs) == len(RIGHT)
    assert answer.text == "".join(f"<{token}>" for token in RIGHT if token)
    done = unpack(path.read_bytes(), "x")
    assert (done.answer, done.finish) == (RIGHT, answer.finish_reason)


@pytest.mark.net
def test_answer_that_has_ended_is_told_again_without_asking(served, tmp_path):
    path = tmp_path / "answer.state"
    with device_of(served) as device:
        options = {"max_tokens": NUM_TOKENS, "sampling": SAMPLED, "stop": ["9"], "save_to": path}
        first = device.generate(PROMPT, **options).answer()
        before = served.server._machine.totals.sessions
        stream = device.resume(path, save=False)
        assert list(stream) == []
        again = stream.answer()
        assert served.server._machine.totals.sessions == before
    assert (again.tokens, again.text, again.finish_reason) == (first.tokens, first.text, first.finish_reason)


@pytest.mark.net
def test_text_prompt_that_no_server_has_read_yet_is_kept_as_text(served, tmp_path):
    path = tmp_path / "answer.state"
    with device_of(served) as device:
        expected = device.generate("abc", max_tokens=9).answer()
        device.generate("abc", max_tokens=9, save_to=path).close()
        assert unpack(path.read_bytes(), "x").prompt_tokens == []
        assert device.resume(path).answer().tokens == expected.tokens
        stream = device.chat([{"role": "user", "content": "abc"}], max_tokens=9, save_to=path)
        chat = stream.answer()
        path.write_bytes(
            pack(msgspec.structs.replace(unpack(path.read_bytes(), "x"), prompt_tokens=[], answer=[], finish=""))
        )
        assert device.resume(path).answer().tokens == chat.tokens


@pytest.mark.net
def test_unverified_text_is_saved_told_again_and_verified(served, tmp_path):
    path = tmp_path / "answer.state"
    with served.serving() as real, Proxy(int(real.rpartition(":")[2])) as proxy:
        drafter = ToyDrafter(served.target, error=0.5)
        with served.device(proxy.endpoint, drafter, on_loss="release", release_after_s=0.0, wait_s=0.05) as device:
            stream = device.generate(PROMPT, max_tokens=NUM_TOKENS, sampling=SAMPLED, save_to=path)
            iterator = iter(stream)
            next(iterator)
            proxy.refuse()
            proxy.cut()
            list(iterator)
            answer = stream.answer()
            assert answer.finish_reason == ""
            assert [token for token, _ in unpack(path.read_bytes(), "x").unverified] == answer.unverified
        with served.device(real, drafter) as device:
            events = list(device.resume(path).events())
    told = [event.id for event in events if isinstance(event, Unverified)]
    assert told[: len(answer.unverified)] == answer.unverified
    assert any(isinstance(event, Retracted) for event in events)
    assert answer.tokens + [event.id for event in events if isinstance(event, Token)] == RIGHT


@pytest.mark.net
def test_files_that_cannot_be_resumed_or_written_are_errors_at_once(served, tmp_path):
    path = tmp_path / "answer.state"
    with device_of(served) as device:
        begin(device, path)
        with pytest.raises(StateUnusable, match=r"cannot read .*nothing"):
            device.resume(tmp_path / "nothing")
        with pytest.raises(StateUnusable, match="cannot save the answer to"):
            device.generate(PROMPT, save_to=tmp_path / "answer.state" / "below")
        state = unpack(path.read_bytes(), "x")
        path.write_bytes(pack(msgspec.structs.replace(state, target_id=b"toy 7")))
        with pytest.raises(StateUnusable, match="of target toy"):
            device.resume(path)
        path.write_bytes(b"hello")
        with pytest.raises(StateUnusable, match="holds no saved answer"):
            device.resume(path)


@pytest.mark.net
def test_killed_process_is_gone_on_with_by_another_one(tmp_path):
    """kill -9 at any moment leaves a valid file; nothing is lost in front of it, and nothing comes twice behind it."""
    target, path = ToyTarget(), tmp_path / "answer.state"
    with edgebus.Node("server", insecure=True) as node:
        endpoint = node.bind("tcp://127.0.0.1:0")
        with serving(node, target):
            asked = {
                "server": endpoint,
                "cache": str(tmp_path / "cache"),
                "file": str(path),
                "prompt": PROMPT,
                "max_tokens": NUM_TOKENS,
                "sampling": {"temperature": 0.8, "top_k": 20, "top_p": 0.95, "seed": 3},
            }
            told = _tokens_of(asked | {"resume": False, "pause_s": 0.05}, kill_after=15)
            state = unpack(path.read_bytes(), "x")
            assert 0 < len(state.answer) <= len(RIGHT)
            assert state.answer == RIGHT[: len(state.answer)]
            rest = _tokens_of(asked | {"resume": True, "pause_s": 0.0})
    assert told == list(enumerate(RIGHT[: len(told)], len(PROMPT)))
    assert rest == list(enumerate(RIGHT, len(PROMPT)))[len(state.answer) :]


def _tokens_of(asked, kill_after=None):
    """(position, token) pairs that a device process prints, up to its end or its death."""
    command = [sys.executable, str(Path(__file__).with_name("child_saver.py")), json.dumps(asked)]
    told = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        for line in child.stdout:
            if line.startswith("answer"):
                assert json.loads(line.removeprefix("answer")) == RIGHT
                continue
            pos, token = line.split()
            told.append((int(pos), int(token)))
            if len(told) == kill_after:
                child.send_signal(signal.SIGKILL)
        errors = child.stderr.read()
        assert child.wait() == (0 if kill_after is None else -signal.SIGKILL), errors
    return told
