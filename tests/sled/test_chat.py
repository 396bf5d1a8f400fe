"""The terminal chat: what is shown as what, lines that grow, commands, and a whole conversation in a pty."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

import edgebus
from sled.chat.clean import clean
from sled.chat.commands import Command, changed, parse
from sled.chat.conversation import Conversation, Settings
from sled.chat.paint import Painter, lines
from sled.chat.screen import Plain, Screen
from sled.chat.talk import Talk
from sled.chat.tally import Tally
from sled.chat.transcript import Kind, Transcript
from sled.chat.wrap import wrap
from sled.drafters import NoDrafter
from sled.errors import ParameterError
from sled.events import Finished, Opened, Retracted, RoundEnded, ServerLost, Speculative, Unverified
from sled.messages import Vocabulary
from sled.testing import ToyTarget
from sled.types import Message, Sampling, Token
from sled.vocabulary import vocabulary_hash
from tests.sled.terminal import Session, Terminal

HOSTILE = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202eright to left\r\b\x00"


def ended(base, drafted, accepted, tokens):
    return RoundEnded(base, drafted, accepted, tokens, 8, 1, 0.1, 0.2)


def kinds(transcript):
    return [(piece.kind, piece.text) for piece in transcript.pieces]


def told(*events):
    transcript = Transcript()
    for event in events:
        transcript.apply(event)
    return transcript


# -- what is shown as what


def test_accepted_corrected_own_and_speculative_text_are_told_apart():
    transcript = told(
        Speculative(3, (7, 8, 9), " the cat sat"),
        ended(3, 2, 1, 2),
        Token(7, 3, True, " the"),
        Token(5, 4, False, " dog"),
        ended(5, 0, 0, 1),
        Token(6, 5, False, " ran"),
        Speculative(6, (1,), " off"),
    )
    expected = [(Kind.ACCEPTED, " the"), (Kind.CORRECTED, " dog"), (Kind.OWN, " ran"), (Kind.SPECULATIVE, " off")]
    assert kinds(transcript) == expected
    assert transcript.text == " the dog ran"
    transcript.apply(Speculative(6, (), ""))
    assert kinds(transcript) == expected[:3]


def test_a_token_behind_a_round_that_was_accepted_whole_is_no_correction():
    transcript = told(ended(3, 1, 1, 2), Token(7, 3, True, "a"), Token(8, 4, False, "b"))
    assert kinds(transcript) == [(Kind.ACCEPTED, "a"), (Kind.OWN, "b")]


def test_unverified_text_becomes_settled_where_it_was_right_and_is_struck_out_where_it_was_not():
    transcript = told(Token(1, 3, True, "We"), *(Unverified(n, n, f" {n}") for n in (4, 5, 6)))
    assert transcript.unverified == 3
    assert kinds(transcript) == [(Kind.ACCEPTED, "We"), (Kind.UNVERIFIED, " 4 5 6")]
    transcript.apply(Token(4, 4, True, " 4"))
    transcript.apply(Retracted(5))
    transcript.apply(Token(9, 5, False, " nine"))
    assert kinds(transcript) == [
        (Kind.ACCEPTED, "We 4"),
        (Kind.RETRACTED, " 5 6"),
        (Kind.OWN, " nine"),
    ]
    assert (transcript.text, transcript.unverified) == ("We 4 nine", 0)


def test_speculative_text_is_not_shown_twice_while_it_is_released():
    transcript = told(Speculative(3, (4, 5), " four five"), Unverified(4, 3, " four"))
    assert kinds(transcript) == [(Kind.UNVERIFIED, " four")]


def test_dropped_text_is_not_shown_again():
    transcript = told(*(Token(n, n, n % 2 == 0, f"{n:04d}") for n in range(100)))
    transcript.drop(4 * 98 + 1)
    assert kinds(transcript) == [(Kind.ACCEPTED, "098"), (Kind.OWN, "0099")]
    assert len(transcript.text) == 400


def test_control_characters_do_not_reach_the_terminal():
    assert clean(HOSTILE) == "\ufffd[2J\ufffd]0;owned\ufffd\ufffd31m\ufffdright to left\ufffd\ufffd"
    assert clean("a\tb\nc\u200b") == "a    b\nc"
    assert clean("\u3000漢\u00a0字 1\u202f000") == "\u3000漢 字 1 000"  # spaces, though not "printable"
    assert kinds(told(Token(1, 0, True, "\x1b[31m"), Speculative(1, (2,), "\x1b]"))) == [
        (Kind.ACCEPTED, "\ufffd[31m"),
        (Kind.SPECULATIVE, "\ufffd]"),
    ]


# -- lines

TEXTS = st.text(st.sampled_from("ab cdefghij \n漢字é[-"), max_size=60)


def shown(text, width):
    return [text[a:b].rstrip() for a, b in wrap(text, width)]


def test_lines_break_at_spaces_at_wide_characters_and_within_long_words():
    assert shown("to be, or not to be", 9) == ["to be, or", "not to be"]
    assert shown("abcdefghij", 4) == ["abcd", "efgh", "ij"]
    assert shown("漢字漢字", 5) == ["漢字", "漢字"]
    assert shown("a bc漢", 4) == ["a bc", "漢"]
    assert shown("a\n\nb", 4) == ["a", "", "b"]


@given(TEXTS, st.integers(2, 20))
def test_lines_fit_and_hold_the_whole_text(text, width):
    spans = wrap(text, width)
    assert all(cell_len(text[a:b].rstrip(" ")) <= width for a, b in spans)
    assert "".join(text[a:b] for a, b in spans) == text.replace("\n", "")


@given(TEXTS, TEXTS, st.integers(2, 20))
def test_all_lines_but_the_last_stay_whatever_is_appended(text, more, width):
    before = wrap(text, width)
    assert wrap(text + more, width)[: len(before) - 1] == before[:-1]


@given(st.lists(st.tuples(st.booleans(), st.text(st.sampled_from("ab c\n漢"), min_size=1, max_size=9)), max_size=30))
@pytest.mark.parametrize("colour", [False, True])
def test_lines_that_scrolled_away_and_those_that_did_not_are_the_whole_text(colour, tokens):
    transcript, painter, printed = Transcript(), Painter(colour=colour), []
    for pos, (drafted, text) in enumerate(tokens):
        transcript.apply(Token(pos, pos, drafted, text))
        drawn = lines(painter.paint(transcript.pieces), 12)
        final = [(line, upto) for line, upto, is_final in drawn if is_final]
        printed += [line.plain for line, _ in final]
        transcript.drop(final[-1][1] if final else 0)
    rest = [line.plain for line, _, _ in lines(painter.paint(transcript.pieces), 12)]
    whole = "".join([*printed, *rest]).replace(" ", "")
    assert whole == "".join(text for _, text in tokens).replace(" ", "").replace("\n", "")


def test_marks_stand_for_colours_where_there_are_none():
    pieces = told(
        ended(3, 2, 1, 2),
        Token(7, 3, True, "The"),
        Token(5, 4, False, " dog"),
        Token(6, 5, False, " ran"),
        Unverified(8, 6, " away"),
    ).pieces
    assert Painter(colour=False).paint(pieces).text.plain == "The [dog] ran ?away?"
    assert Painter(colour=True).paint(pieces).text.plain == "The dog ran ?away?"
    legend = Painter(colour=False, unicode=False).legend().plain
    assert "(no verdict yet)" in legend
    assert legend.isascii()


# -- figures


def test_the_line_of_figures_leaves_out_what_does_not_fit():
    tally = Tally("tcp://10.0.0.5:5555")
    for event in (Opened("tcp://10.0.0.5:5555", 3, 3, 8, 0.0), ended(3, 4, 3, 4), ended(7, 4, 1, 2)):
        tally.apply(event, now_s=0.1)
    for pos in range(6):
        tally.apply(Token(1, pos, True, "x"), now_s=0.5)
    tally.num_bytes = 600
    whole = "3.0 tokens/s · 50% accepted · 3.0 a round · 100 B a token · 100 ms · 10.0.0.5:5555 up"
    assert tally.line(2.0, 200) == whole
    assert tally.line(2.0, 50) == "3.0 tokens/s · 50% accepted · 10.0.0.5:5555 up"
    assert tally.line(2.0, 30) == "3.0 tokens/s · 50% accepted"
    assert all(len(tally.line(2.0, width)) <= width for width in range(12, 100))
    tally.apply(ServerLost("tcp://10.0.0.5:5555", "gone", 0.6), now_s=0.6)
    assert tally.line(2.0, 40) == "3.0 tokens/s · 10.0.0.5:5555 LOST"


# -- commands and files


def test_lines_with_a_slash_are_commands():
    assert parse("hello") == "hello"
    assert parse("//etc") == "/etc"
    assert parse("/Seed  7 ") == Command("seed", "7")
    assert parse("/exit") == Command("quit", "")
    with pytest.raises(ParameterError, match="no command /temperatur, do you mean /temperature"):
        parse("/temperatur 1")
    with pytest.raises(ParameterError, match="/help"):
        parse("/xyzzy")


def test_settings_change_and_bad_values_are_refused():
    settings = Settings()
    for line in ("/seed 7", "/temperature 0.5", "/system Be brief.", "/max 9"):
        settings = changed(settings, parse(line))
    assert settings == Settings(system="Be brief.", max_tokens=9, sampling=Sampling(0.5, seed=7))
    for line in ("/seed x", "/temperature -1", "/temperature nan", "/max 0", "/max 999999999", "/seed -1"):
        with pytest.raises(ParameterError, match="is no value for"):
            changed(settings, parse(line))


def test_a_conversation_comes_back_from_its_file_and_others_are_refused():
    conversation = Conversation(Settings(system="Be brief.", sampling=Sampling(0.5, seed=7)))
    conversation.answered("one?", "two\x1b")
    again, target = Conversation.from_json(conversation.to_json("toy"))
    assert (again.turns, again.settings, target) == (conversation.turns, conversation.settings, "toy")
    assert [each.role for each in again.asking("three?")] == ["system", "user", "assistant", "user"]
    good = json.loads(conversation.to_json("toy"))
    for bad in (b"", b"[]", b"\xff", b'{"kind": "sled chat"}', json.dumps(good | {"version": 2}).encode()):
        with pytest.raises(ParameterError, match="no conversation"):
            Conversation.from_json(bad)
    with pytest.raises(ParameterError, match="no conversation"):
        Conversation.from_json(json.dumps(good | {"extra": 1}).encode())


# -- the screen


class ScriptedStream:
    """Events as told; an Exception among them is raised."""

    num_bytes = 100

    def __init__(self, events):
        self.script, self.closed, self.cancelled = events, False, threading.Event()

    def events(self):
        for event in self.script:
            if isinstance(event, Exception):
                raise event
            yield event

    def cancel(self):
        self.cancelled.set()

    def close(self):
        self.closed = True


class ScriptedDevice:
    target, drafter, server = ToyTarget().described, NoDrafter(), "tcp://10.0.0.5:5555"

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    def chat(self, messages, **options):
        self.asked.append((messages, options))
        return ScriptedStream(self.answers.pop(0))


class ScriptedReader:
    def __init__(self, *script):
        self.script = list(script)

    def read(self):
        line = self.script.pop(0) if self.script else None
        if line is KeyboardInterrupt:
            raise KeyboardInterrupt
        return line


def answer(*texts):
    tokens = [Token(n, 3 + n, False, text) for n, text in enumerate(texts)]
    return [Opened("tcp://10.0.0.5:5555", 3, 3, 8, 0.0), *tokens, Finished("stop", 0, 1.0)]


def talk(device, *script, width=80, height=24, **console):
    out = io.StringIO()
    options = {"force_terminal": True, "color_system": "standard", "legacy_windows": False} | console
    screen = Console(file=out, width=width, height=height, highlight=False, _environ={}, **options)
    conversation = Talk(device, screen, ScriptedReader(*script), Settings())
    status = conversation.run()
    terminal = Terminal(width, height)
    terminal.feed(out.getvalue().replace("\n", "\r\n"))
    return status, terminal, conversation


@pytest.mark.parametrize("width", [8, 20, 80])
def test_an_answer_stands_whole_on_any_terminal_and_nothing_else_is_left(width):
    words = [f" word{n}" for n in range(40)] + [" 漢字", "\nend"]
    _, terminal, _ = talk(ScriptedDevice(answer(*words)), "hello", width=width, height=6)
    text = terminal.text()
    flat = "".join(text.split())
    assert flat.count("".join("".join(words).split())) == 1
    assert text.count("tokens/s") == (1 if width > 8 else 0)


def test_retracted_text_stays_visible_and_what_is_right_follows():
    events = [
        *answer("We")[:2],
        ServerLost("tcp://10.0.0.5:5555", "gone", 0.1),
        *(Unverified(n, n, f" {word}") for n, word in enumerate(("were", "wrong"), 4)),
        Opened("tcp://10.0.0.5:5555", 3, 4, 8, 0.2),
        Token(4, 4, True, " were"),
        Retracted(5),
        Token(9, 5, False, " right"),
        Finished("stop", 0, 1.0),
    ]
    _, terminal, conversation = talk(ScriptedDevice(events), "hello")
    assert "We were ~wrong~ right\n" in terminal.text()
    assert any("9" in style.split(";") for style in terminal.styles_of("~wrong~"))  # struck out
    assert conversation.conversation.turns == [Message("user", "hello"), Message("assistant", "We were right")]


def test_a_conversation_goes_on_with_what_was_said_until_it_is_reset(tmp_path):
    device = ScriptedDevice(answer("Two", "."), answer("Three."), answer("Four."))
    file = tmp_path / "talk.json"
    script = ("one?", "/system Count.", "two?", f"/save {file}", "/reset", f"/load {file}", "/stats", "/help", "three?")
    status, terminal, conversation = talk(device, *script, "/nonsense", "/save")
    assert status == 0
    said = [[message.content for message in messages] for messages, _ in device.asked]
    assert said == [
        ["one?"],
        ["Count.", "one?", "Two.", "two?"],
        ["Count.", "one?", "Two.", "two?", "Three.", "three?"],
    ]
    assert "tokens a round" in terminal.text()
    assert "no command /nonsense" in terminal.text()
    assert "/save needs a file name" in terminal.text()
    assert len(conversation.tallies) == 3


def test_ctrl_c_at_the_prompt_leaves_only_the_second_time():
    assert talk(ScriptedDevice(), KeyboardInterrupt, KeyboardInterrupt)[0] == 130
    assert talk(ScriptedDevice(), KeyboardInterrupt, "/help", KeyboardInterrupt)[0] == 0


def test_files_and_texts_that_cannot_be_are_told_and_the_conversation_goes_on(tmp_path):
    deep = tmp_path / "deep.json"
    deep.write_bytes(b'{"target": "", "messages": [], "settings": {"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}")
    scripts = (f"/load {deep}", "/load ~no-such-user/x", "/load a\0b", "/load a\udcffb", f"/load {tmp_path}")
    texts = ("/system \udcff", "/sy\udcff", f"/save {tmp_path}/\udcff/x")
    status, terminal, conversation = talk(ScriptedDevice(answer("Yes.")), *scripts, *texts, "still there?", width=200)
    assert status == 0
    assert "this is no conversation" in terminal.text()
    assert "/load ~no-such-user/x" in terminal.text()
    assert "the text of /system is not valid" in terminal.text()
    assert conversation.conversation.turns[-1] == Message("assistant", "Yes.")
    conversation.conversation.to_json("toy")


def test_a_failure_is_told_and_the_conversation_goes_on_without_the_question():
    broken = [*answer()[:1], edgebus.LinkLost("tcp://10.0.0.5:5555 is down\x1b[31m")]
    device = ScriptedDevice(broken, answer("Yes."))
    status, terminal, _ = talk(device, "one?", "two?")
    assert status == 0
    assert "tcp://10.0.0.5:5555 is down\ufffd[31m" in terminal.text()
    assert [message.content for message in device.asked[1][0]] == ["two?"]


def test_plain_output_has_committed_text_alone():
    out = io.StringIO()
    plain, tally = Plain(out), Tally("s")
    transcript = told(Token(1, 3, True, "We"), Unverified(4, 4, " were"), Speculative(5, (1,), " so"))
    plain.show(transcript, tally, 1.0)
    assert out.getvalue() == "We"
    transcript.apply(Retracted(4))
    transcript.apply(Token(5, 4, False, " are"))
    plain.finish(transcript, tally, 1.0)
    assert out.getvalue() == "We are\n"
    plain.finish(told(Unverified(4, 4, "maybe")), tally, 1.0)
    assert out.getvalue().endswith(" [unverified: maybe]\n")


def test_a_long_unverified_text_does_not_outgrow_the_terminal():
    out = io.StringIO()
    console = Console(file=out, width=20, height=8, force_terminal=True, highlight=False, _environ={})
    screen = Screen(console, Painter(colour=True))
    transcript = told(*(Unverified(n, n, f" word{n}") for n in range(100)))
    screen.show(transcript, Tally("s", state="lost"), 1.0)
    assert len(out.getvalue().rstrip().split("\n")) <= 8
    screen.finish(transcript, Tally("s"), 1.0)
    assert "word0" in out.getvalue()


# -- the program


class SlowTarget(ToyTarget):
    """Says hostile and wide things, and waits for leave after some steps."""

    def __init__(self, pieces):
        super().__init__(seed=3)
        self.vocabulary = Vocabulary([pieces[n % len(pieces)] for n in range(50)], [0])
        digest = vocabulary_hash(self.vocabulary)
        self.described = type(self.described)("toy", "float32", 50, digest, 4096, 16, [0], self.shape.target_id)
        self.leave, self.free_steps = threading.Event(), 40

    def verify(self, chunks, rounds):
        self.free_steps -= 1
        if self.free_steps < 0:
            self.leave.wait(20)
        return super().verify(chunks, rounds)


def command(served, endpoint, *more):
    where = ["--server", endpoint, "--server-key", str(served.directory / "server" / "node.key")]
    keys = ["--keys", str(served.directory / "device"), "--drafter", "none"]
    return [sys.executable, "-m", "sled.cli", "chat", *where, *keys, *more]


@pytest.mark.net
def test_a_conversation_in_a_terminal(served, tmp_path):
    """A hostile model, Ctrl-C in the middle of an answer, another answer, Ctrl-C twice."""
    target = SlowTarget([b"\x1b[2J", " 漢字".encode(), b" word", b"\x9b5m\n"])
    with served.serving(target=target) as endpoint:
        chat = command(served, endpoint, "--max-tokens", "60")
        with Session(chat, width=50, height=12, XDG_CACHE_HOME=str(tmp_path)) as session:
            session.expect("> ")
            session.type("hello\n")
            session.seen("tokens/s")
            session.seen("漢字")
            session.interrupt()
            target.leave.set()
            session.expect("stopped")
            session.expect("> ", times=2)
            session.type("/max 3\n")
            session.expect("> ", times=3)
            session.type("again\n")
            session.expect("> ", times=4)
            session.interrupt()
            with suppress(AssertionError):  # one that comes just as the answer ends is taken for the answer
                session.expect("Ctrl-C again leaves", within_s=2.0)
            if "Ctrl-C again leaves" not in session.raw_text():
                session.interrupt()
                session.expect("Ctrl-C again leaves")
            session.interrupt()
            assert session.end() == 130
        assert "\x1b[2J" not in session.raw
        assert "\x9b" not in session.raw
        assert "\ufffd[2J" in session.screen.text()
        assert (tmp_path / "edgebus" / "chat_history").read_text().count("hello") == 1


@pytest.mark.net
def test_a_pipe_gets_plain_answers_and_a_failure_its_status(served, tmp_path):
    with served.serving() as endpoint:
        chat = command(served, endpoint, "--max-tokens", "4")
        run = subprocess.run(chat, input="abc\n/max 2\nde\n", capture_output=True, text=True, timeout=60, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    first, second, *rest = run.stdout.split("\n")
    expected = served.target.plain_answer(served.target.codec.encode("abc", chat=True), Sampling(), 4)
    assert first == "".join(f"<{token}>" for token in expected)
    assert second.count("<") == 2
    assert rest == [""]
