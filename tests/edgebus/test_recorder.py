"""Recordings: what is written reads back, a torn tail is said, a hostile file is bounded; replays count."""

from __future__ import annotations

import contextlib
import io
import re
import zlib
from pathlib import Path

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgebus import messages as m
from edgebus.assembly import Assembler
from edgebus.calls import Reply
from edgebus.errors import DeadlineExceeded, Refused
from edgebus.recorder import (
    MAGIC,
    Lost,
    Reader,
    RecordingError,
    Start,
    Traffic,
    Writer,
    decode_records,
    encode_records,
    pack,
)
from edgebus.replay import MAX_OUTSTANDING, Replay

START = Start("hall", 1000.5, "edgebus 1")


def traffic(header, *frames, at=1.0, direction="in", peer="p1", sizes=None):
    sizes = tuple(map(len, frames)) if sizes is None else sizes
    return Traffic(at, direction, peer, "", "phone", "control", m.encode_header(header), sizes, frames)


def request(number, payload=b"hi", service="echo", terms=None, arrays=(), frames=(), **options):
    return traffic(m.Request(number, service, 1000, 0, arrays, None, terms), payload, *frames, **options)


def reply(number, payload=b"hi", **options):
    return traffic(m.Reply(number), payload, direction="out", **options)


def recording(*records):
    file = io.BytesIO()
    writer = Writer(file, START)
    for record in records:
        writer.write(record)
    return file.getvalue()


def test_what_is_written_reads_back():
    records = [request(0), Lost(3), reply(0, b"\x00" * 1000)]
    reader = Reader(io.BytesIO(recording(*records)))
    assert reader.start == START
    assert list(reader) == records
    assert reader.damage == ""


def test_bytes_are_as_the_specification_says():
    content = recording(Lost(3))
    assert content[:10] == b"\x89EBREC\r\n\x01\x00"
    size = int.from_bytes(content[10:14], "little")
    body = content[18 : 18 + size]
    assert int.from_bytes(content[14:18], "little") == zlib.crc32(body)
    assert msgpack.unpackb(body) == [1, "hall", 1000.5, "edgebus 1"]  # a second implementation
    tail = content[18 + size :]
    assert tail == b"\x03\x00\x00\x00" + zlib.crc32(b"\x92\x03\x03").to_bytes(4, "little") + b"\x92\x03\x03"


def test_the_example_in_the_specification_is_what_is_written():
    spec = (Path(__file__).parents[2] / "docs/spec/bus-recording.md").read_text()
    block = spec[spec.index("Example:") :].split("```")[1]
    shown = bytes.fromhex("".join(re.findall(r"^((?:[0-9a-f]{2} +)+)", block, re.MULTILINE)))
    file = io.BytesIO()
    Writer(file, Start("n", 0.0))
    assert file.getvalue() == shown


def test_counts_are_kept():
    writer = Writer(io.BytesIO(), START)
    for record in (request(0), Lost(2), Lost(3), request(1)):
        writer.write(record)
    assert (writer.num_messages, writer.num_lost) == (2, 5)


@pytest.mark.parametrize("cut", range(1, 30))
def test_a_torn_tail_is_tolerated_and_said(cut):
    whole = recording(request(0), request(1))
    reader = Reader(io.BytesIO(whole[:-cut]))
    assert [m.decode_header(each.header).id for each in reader] == [0]
    assert "cut off" in reader.damage
    last = len(recording(request(0)))
    assert f"at byte {last}:" in reader.damage


def test_a_flipped_bit_ends_the_reading_and_is_said():
    content = bytearray(recording(request(0), request(1), request(2)))
    content[len(recording(request(0))) + 20] ^= 1
    reader = Reader(io.BytesIO(bytes(content)))
    assert len(list(reader)) == 1
    assert "checksum" in reader.damage


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a recording"),
        (b"hello, world, this is text", "not a recording"),
        (MAGIC + b"\x02\x00", "version 2, this edgebus reads 1"),
        (MAGIC + b"\x01\x00", "does not begin with its start record"),
        (MAGIC + b"\x01\x00" + pack(Lost(1)), "does not begin with its start record"),
    ],
)
def test_what_is_no_recording_is_refused(content, said):
    with pytest.raises(RecordingError, match=said):
        Reader(io.BytesIO(content))


class Measured(io.BytesIO):
    """Notes the largest amount that was asked for at once."""

    largest = 0

    def read(self, size=-1):
        self.largest = max(self.largest, size)
        return super().read(size)


def test_an_announced_size_is_checked_before_it_is_read():
    file = Measured(recording() + b"\xff\xff\xff\xff" + bytes(100))
    reader = Reader(file, max_record_bytes=1000)
    assert list(reader) == []
    assert "announces a record of 4294967295 B, accepted are 1000 B" in reader.damage
    assert file.largest <= 1000


def test_a_second_start_is_damage():
    reader = Reader(io.BytesIO(recording(request(0)) + pack(START) + pack(request(1))))
    assert len(list(reader)) == 1
    assert "second start" in reader.damage


@given(st.binary(max_size=300))
def test_no_bytes_do_more_than_end_the_reading(tail):
    reader = Reader(io.BytesIO(recording(request(0)) + tail))
    assert next(iter(reader)) == request(0)
    list(reader)


@given(st.binary(max_size=300))
def test_no_part_of_a_tap_raises_anything_else(payload):
    with contextlib.suppress(ValueError):
        decode_records(payload)


def test_parts_of_a_tap_read_back():
    records = (request(0), Lost(4))
    assert decode_records(encode_records(records)) == records


# -- replay ---------------------------------------------------------------------------------------------


class Answer:
    def __init__(self, result):
        self._result = result

    def result(self):
        if isinstance(self._result, Exception):
            raise self._result
        return self._result


class FakeLink:
    """Answers each service with what the test says."""

    def __init__(self, answers):
        self.answers = answers
        self.sent = []

    def send_request(self, service, payload=b"", arrays=(), timeout_s=10.0):
        self.sent.append((service, payload, [array.tolist() for array in arrays], timeout_s))
        answer = self.answers[service]
        return Answer(answer(payload) if callable(answer) else answer)

    def send(self, service, payload=b"", arrays=(), timeout_s=10.0):
        self.sent.append(("one-way", service))
        return Answer(m_reply(b""))


def m_reply(payload):
    return Reply(payload, ())


def replay(records, answers, **options):
    link = FakeLink(answers)
    tally = Replay(link, **({"speed": float("inf")} | options)).run(records)
    return link, tally


def test_equal_answers_are_the_same_and_others_named():
    records = [request(0, b"a"), reply(0, b"A"), request(1, b"b"), reply(1, b"B"), request(2, b"c")]
    link, tally = replay(records, {"echo": lambda payload: m_reply(b"A")})
    assert [payload for _, payload, _, _ in link.sent] == [b"a", b"b", b"c"]
    assert (tally.sent, tally.same, tally.different, tally.uncompared) == (3, 1, 1, 1)
    assert tally.differences == ["request 2 echo: frame 0 differs from byte 0 on (1 B then, 1 B now)"]


def test_a_refusal_is_the_same_if_its_code_is():
    records = [
        request(0),
        traffic(m.Refusal(0, "busy", "text of then"), b"", direction="out"),
        request(1),
        traffic(m.Refusal(1, "busy", ""), b"", direction="out"),
    ]
    answers = iter([Refused("busy", "another text"), DeadlineExceeded("late")])
    _, tally = replay(records, {"echo": lambda payload: next(answers)})
    assert (tally.same, tally.different) == (1, 1)
    assert "was busy, is DeadlineExceeded" in tally.differences[0]


def test_what_cannot_be_sent_is_counted_by_reason():
    records = [
        request(0, service="edgebus.ping"),
        request(1, service="other"),
        request(2, terms=m.Terms(kind=m.STREAM)),
        traffic(m.Request(3, "echo", 1000, 0), sizes=(10,)),
        request(4, terms=m.Terms(kind=m.ONE_WAY)),
        request(5, arrays=(m.ArraySpec("i4", (2,)),), frames=(b"1234567",)),
        request(6, arrays=(m.ArraySpec("i4", (2,)),)),
        request(7, frames=(b"an array that the header does not name",)),
        Lost(7),
    ]
    link, tally = replay(records, {"echo": m_reply(b"")}, pattern="ech*")
    assert link.sent == [("one-way", "echo")]
    assert tally.skipped == {"streams": 1, "without contents": 4}
    assert (tally.sent, tally.lost) == (1, 7)


def test_arrays_are_sent_as_they_were():
    spec = m.ArraySpec("i4", (2, 1))
    frame = (5).to_bytes(4, "little") + (6).to_bytes(4, "little")
    link, _ = replay([request(0, arrays=(spec,), frames=(frame,))], {"echo": m_reply(b"")})
    assert link.sent[0][2] == [[[5], [6]]]


def test_a_resent_request_is_sent_once_and_peers_are_told_apart():
    records = [
        request(0, b"a"),
        request(0, b"a"),
        request(0, b"b", peer="p2"),
        reply(0, b"b", peer="p2"),
        reply(0, b"a"),
    ]
    link, tally = replay(records, {"echo": m_reply})
    assert len(link.sent) == 2
    assert tally.same == 2


def test_the_pace_is_the_recorded_one_times_speed():
    now, slept = [100.0], []

    def sleep(seconds):
        slept.append(seconds)
        now[0] += seconds

    records = [request(0, at=50.0), request(1, at=51.0), request(2, at=51.5), request(3, at=10.0)]
    replay(records, {"echo": m_reply(b"")}, speed=2.0, clock=lambda: now[0], sleep=sleep)
    assert slept == pytest.approx([0.5, 0.25])


def test_outgoing_requests_are_replayed_when_asked():
    records = [
        traffic(m.Request(0, "echo", 1, 0), b"x", direction="out"),
        traffic(m.Reply(0), b"x", direction="in"),
        request(0, b"not this"),
    ]
    link, tally = replay(records, {"echo": m_reply}, direction="out")
    assert [payload for _, payload, _, _ in link.sent] == [b"x"]
    assert tally.same == 1


def transfer(number, sizes, frames=(), header=None):
    header = header or m.Request(number, "echo", 1000, 0, (), None, None, m.Transfer(7, sizes))
    return traffic(header, *frames, sizes=sizes)


def chunk(offset, piece, number=7, direction="in"):
    return traffic(m.Chunk(number, offset), piece, direction=direction)


def test_content_that_came_in_chunks_is_put_together():
    records = [
        transfer(0, (6,)),
        chunk(0, b"abc"),
        transfer(0, (6,)),  # announced again
        chunk(4, b"xx"),  # a gap: lost before it
        chunk(2, b"cd"),
        chunk(0, b"zz", direction="out"),  # another transfer: the other way
        chunk(4, b"ef"),
        reply(0, b"ABCDEF"),
    ]
    link, tally = replay(records, {"echo": lambda payload: m_reply(payload.upper())})
    assert [payload for _, payload, _, _ in link.sent] == [b"abcdef"]
    assert (tally.same, tally.skipped) == (1, {})


def test_content_that_never_came_whole_is_not_sent():
    records = [transfer(0, (6,)), chunk(0, b"abc"), traffic(m.Drop(7)), transfer(1, (6,)), chunk(0, b"abc")]
    records += [transfer(2, (6,)), chunk(0, b"ab"), chunk(3, b"def"), chunk(5, b"f")]  # byte 2 never came
    link, tally = replay(records, {"echo": m_reply(b"")})
    assert link.sent == []
    assert tally.skipped == {"without contents": 3}


def test_an_assembler_holds_a_bounded_amount():
    assembler = Assembler(max_held_bytes=100)
    header = m.Request(0, "echo", 1, 0, (), None, None, m.Transfer(0, (2**40,)))
    [(given, _)] = assembler.feed(transfer(0, (2**40,), header=header), header)
    assert not given.is_whole
    given = []
    for number in range(5):
        header = m.Request(number, "echo", 1, 0, (), None, None, m.Transfer(number, (60,)))
        given += assembler.feed(transfer(number, (60,), header=header), header)
    assert [each.id for _, each in given] == [0, 1, 2, 3]
    assert [each.id for _, each in assembler.rest()] == [4]


def test_waiting_requests_are_bounded():
    waiting, most = [0], [0]

    class Counted(Answer):
        def result(self):
            waiting[0] -= 1
            return super().result()

    class Counting(FakeLink):
        def send_request(self, *arguments):
            waiting[0] += 1
            most[0] = max(most[0], waiting[0])
            return Counted(m_reply(b""))

    tally = Replay(Counting({}), speed=float("inf")).run(request(number) for number in range(1000))
    assert (tally.sent, tally.uncompared) == (1000, 1000)
    assert (waiting[0], most[0]) == (0, MAX_OUTSTANDING)


def test_a_content_that_was_announced_and_came_whole_is_given_once_with_its_content():
    content = (b"p" * 5000, bytes(1000))
    specs, transfer = (m.ArraySpec("u1", (1000,)),), m.Transfer(3, (5000, 1000))

    def record(frames):
        header = m.Request(7, "x", 1000, 7, specs, None, None, transfer, None)
        sizes = tuple(map(len, frames))
        return Traffic(0.0, "in", "p", "", "phone", "control", m.encode_header(header), sizes, frames), header

    assembler = Assembler()
    assert assembler.feed(*record(())) == []
    assert [each.sizes for each, _ in assembler.feed(*record(content))] == [(5000, 1000)]
    assert list(assembler.rest()) == []
