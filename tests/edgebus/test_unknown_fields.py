"""What a peer with a valid key says that nobody knows, or that is no value of its field: docs/spec/bus-wire.md, §2.

Messages are put together by msgpack and by hand and sent by pyzmq; what is expected is what the specification says.
"""

from __future__ import annotations

import logging
import math
import os
import threading
from contextlib import contextmanager

import msgpack
import numpy as np
import pytest
import zmq

import edgebus
from edgebus.blobs import manifest_of, serve_blobs

pytestmark = pytest.mark.net
HELLO, WELCOME, RESET, REQUEST, REPLY, REFUSAL, PING, PONG, GOODBYE, CANCEL = range(1, 11)
PART, MORE, CHUNK, CREDIT, OPEN_BULK, LEASES, DROP, PROBE, SEEN = range(11, 20)
LIMITS = [65536, 1 << 20, 64, 1 << 20]
ID = 1000  # of whatever is said here: no request of ours or of the other side has it
NAN = math.nan
BLOCK = [0, 1, 5, 1 << 20, bytes(16), 4096, 96]
TWICE = b"\x82\xa1k\x01\xa1k\x02"  # {"k": 1, "k": 2}
DEEP = b"\x91" * 2000 + b"\xc0"
DEEP_FIELD = b"\x91" * 100 + b"\xc0"
DEEP_MAPS = b"\x81\xa1k" * 1300 + b"\xc0"


def raw(plain, *tails):
    """The array, with bytes of whatever kind for its last elements."""
    packed = b"".join(map(msgpack.packb, plain)) + b"".join(tails)
    return b"\xdc" + (len(plain) + len(tails)).to_bytes(2, "big") + packed


def asked(**changes):
    """A request of all fields, some of them as given."""
    fields = {"id": ID, "service": "echo", "ttl_ms": 9000, "settled_below": 0, "arrays": [], "inline": b"in"}
    fields |= {"terms": None, "transfer": None, "blocks": None}
    return [REQUEST, *(fields | changes).values()]


IGNORED_FIELDS = {  # what a later version may add, however odd: the request is answered
    "a text": msgpack.packb("more"),
    "not a number": msgpack.packb(NAN),
    "2**64 - 1": msgpack.packb(2**64 - 1),
    "-2**63": msgpack.packb(-(2**63)),
    "a key twice": TWICE,
    "a map of maps": msgpack.packb({b"a": {1: [None, True]}, (1, 2): 3}),
    "an extension": msgpack.packb(msgpack.ExtType(77, b"later")),
    "a time before the world": b"\xc7\x0c\xff" + b"\xff" * 12,
    "no UTF-8": b"\xa2\xff\xfe",
    "nested a hundred times": DEEP_FIELD,
}
REFUSED = {  # requests whose header decodes: Refusal "malformed"
    "dtype": [asked(arrays=[["O8", [1]]]), bytes(8)],
    "too many items": [asked(arrays=[["u1", [2**40, 2**40]]]), b"1"],
    "size of an array": [asked(arrays=[["u1", [3]]]), b"12"],
    "no array": [asked(arrays=[["u1", [3]]])],
    "a frame too many": [asked(), b"more"],
    "transfer and blocks": [asked(inline=None, transfer=[5, [0]], blocks=[])],
    "sizes of a transfer": [asked(inline=None, transfer=[5, [2**48]])],
    "blocks without arrays": [asked(blocks=[BLOCK])],
}
DROPPED = {  # counted, and otherwise ignored
    **{
        f"tag {tag!r}": [[tag, 1]] for tag in (0, 20, 99, -1, 2**63, 2**64 - 1, NAN, 4.5, "4", b"\x04", None, True, [4])
    },
    "no array": [{4: 1}],
    "empty array": [[]],
    "a key twice": [TWICE],
    "an extension": [msgpack.packb(msgpack.ExtType(1, b"\x94"))],
    "nothing": [b""],
    "after the end": [msgpack.packb([PING]) + b"\xc0"],
    "more elements than bytes": [b"\xdd\xff\xff\xff\xff\x07"],
    "a text longer than its bytes": [b"\x95\x04\x01\xdb\xff\xff\xff\xff"],
    "nested header": [DEEP],
    "nested maps": [DEEP_MAPS],
    "nested unknown field": [raw(asked(), DEEP)],
    "nested service": [raw([REQUEST, ID], DEEP, b"\x01\x01")],
    "id -1": [asked(id=-1)],
    "id 2**63": [asked(id=2**63)],
    "id 2**64 - 1": [asked(id=2**64 - 1)],
    "id not a number": [asked(id=NAN)],
    "id infinite": [asked(id=math.inf)],
    "id 1.0": [asked(id=1.0)],
    "id 1.5": [asked(id=1.5)],
    "id a text": [asked(id="7")],
    "id true": [asked(id=True)],
    "id nil": [asked(id=None)],
    "service as bytes": [asked(service=b"echo")],
    "service a number": [asked(service=4)],
    "service no UTF-8": [raw([REQUEST, ID], b"\xa2\xff\xfe", b"\x64\x00")],
    "service too long": [asked(service="s" * 65)],
    "ttl -1": [asked(ttl_ms=-1)],
    "ttl not a number": [asked(ttl_ms=NAN)],
    "ttl 2**63": [asked(ttl_ms=2**63)],
    "settled 2**63": [asked(settled_below=2**63)],
    "arrays a map": [asked(arrays={"u1": [1]})],
    "arrays a text": [asked(arrays="u1")],
    "shape -1": [asked(arrays=[["u1", [-1]]]), b""],
    "shape not a number": [asked(arrays=[["u1", [NAN]]]), b""],
    "shape 2**63": [asked(arrays=[["u1", [2**63]]]), b""],
    "shape a key twice": [raw([REQUEST, ID, "echo", 9000, 0], b"\x91\x92\xa2u1" + TWICE)],
    "inline a number": [asked(inline=3)],
    "terms a map": [asked(terms={"kind": 2})],
    "terms a key twice": [raw([REQUEST, ID, "echo", 9000, 0, [], b""], TWICE)],
    "kind 256": [asked(terms=[256])],
    "kind not a number": [asked(terms=[NAN])],
    "stream -2": [asked(terms=[0, b"", -2])],
    "window -1": [asked(terms=[2, b"", -1, 0, 0, -1])],
    "window not a number": [asked(terms=[2, b"", -1, 0, 0, NAN])],
    "transfer -1": [asked(inline=None, transfer=[-1, [0]])],
    "transfer sizes -1": [asked(inline=None, transfer=[1, [-1]])],
    "transfer sizes not a number": [asked(inline=None, transfer=[1, [NAN]])],
    "block fd -1": [asked(arrays=[["u1", [96]]], blocks=[[*BLOCK[:2], -1, *BLOCK[3:]]])],
    "block offset 2**63": [asked(arrays=[["u1", [96]]], blocks=[[*BLOCK[:5], 2**63, 96]])],
    "hello greeting -1": [[HELLO, 1, 2, "raw", bytes(16), -1, LIMITS]],
    "hello version not a number": [[HELLO, 1, NAN, "raw", bytes(16), 2, LIMITS]],
    "hello limits of 2**63": [[HELLO, 1, 2, "raw", bytes(16), 2, [2**63, 2**63, 2**63]]],
    "hello lane 2": [[HELLO, 1, 2, "raw", bytes(16), 2, LIMITS, 2]],
    "hello pid -1": [[HELLO, 1, 2, "raw", bytes(16), 2, LIMITS, 0, [bytes(16), -1, 0]]],
    "hello incarnation of 15": [[HELLO, 1, 2, "raw", bytes(15), 2, LIMITS]],
    "welcome without limits": [[WELCOME, 2, "raw", bytes(16), 1]],
    "reply id -1": [[REPLY, -1, []], b""],
    "reply parts not a number": [[REPLY, ID, [], b"", NAN]],
    "refusal code a number": [[REFUSAL, ID, 5, "why"], b""],
    "refusal detail of 2000": [[REFUSAL, ID, "no", "d" * 2000], b""],
    "ping with a frame": [[PING], b""],
    "pong -1": [[PONG, -1]],
    "pong not a number": [[PONG, 0, NAN]],
    "pong 2**63": [[PONG, 0, 2**63]],
    "goodbye without a reason": [[GOODBYE]],
    "goodbye code a map": [[GOODBYE, {}, ""]],
    "cancel nil": [[CANCEL, None]],
    "cancel 2**63": [[CANCEL, 2**63]],
    "part pos -1": [[PART, ID, -1, [], b""]],
    "more not a number": [[MORE, ID, NAN]],
    "chunk at 2**63": [[CHUNK, 1, 2**63], b"x"],
    "chunk at -1": [[CHUNK, 1, -1], b"x"],
    "credit of 2**63": [[CREDIT, 1, 2**63]],
    "credit rewind a number": [[CREDIT, 1, 0, 1]],
    "leases -1": [[LEASES, -1, []]],
    "leases held not numbers": [[LEASES, 1, [NAN]]],
    "leases a key twice": [raw([LEASES, 1], TWICE)],
    "drop -1": [[DROP, -1]],
    "probe of nothing": [[PROBE, None]],
    "probe 2**63": [[PROBE, [*BLOCK[:6], 2**63]]],
    "seen a text": [[SEEN, "yes"]],
}
WITHOUT_EFFECT = {  # well-formed, about what there is not: neither malformed nor answered
    "reset": [[RESET]],
    "welcome": [[WELCOME, 2, "raw", bytes(16), 2**63 - 1, LIMITS]],
    "reply": [[REPLY, 2**63 - 1, [], b"x"]],
    "refusal": [[REFUSAL, ID, "no", "", "more"], b"x"],
    "part": [[PART, ID, 2**63 - 1, [], b"x", None, None, "more"]],
    "cancel": [[CANCEL, 2**63 - 1, NAN]],
    "more": [[MORE, ID, 2**63 - 1, "more"]],
    "credit": [[CREDIT, 2**63 - 1, 2**48, True, NAN]],
    "drop": [[DROP, 2**63 - 1, {}]],
    "leases": [[LEASES, 2**63 - 1, [2**63 - 1] * 3, "more"]],
    "seen": [[SEEN, False, "more"]],
    "pong": [[PONG, 86_400_000, 0, "more"]],
}
EDGES = {  # and the answer
    "last id": ({"id": 2**63 - 1}, [REPLY, b"in"]),
    "kind that nobody knows": ({"terms": [255]}, [REPLY, b"in"]),
    "end of a stream": ({"terms": [0, b"k" * 64, 2**63 - 1, 2**63 - 1, 2**63 - 1, 2**48]}, [REPLY, b"in"]),
    "a day": ({"ttl_ms": 86_400_000}, [REPLY, b"in"]),
    "no time": ({"ttl_ms": 0}, [REFUSAL, "expired"]),
    "no name": ({"service": ""}, [REFUSAL, "unknown_service"]),
    "last part of a stream": (
        {"terms": [2, b"", -1, 0, 2**63 - 1, 2**48], "service": "x"},
        [REFUSAL, "unknown_service"],
    ),
}
NO_QUESTIONS = [msgpack.packb(plain) for plain in (None, -1, NAN, 2**63, "text", {}, [99], [1, NAN], [1, -1])]
NO_QUESTIONS += [TWICE, DEEP, DEEP_MAPS, b"\xc1", b""]


class Raw:
    """A DEALER with a key that the server knows; it speaks msgpack and asks for an echo after whatever it said."""

    def __init__(self, socket):
        self.socket, self.number = socket, 0

    def say(self, header, *frames):
        self.socket.send_multipart([header if isinstance(header, bytes) else msgpack.packb(header), *frames])

    def hear(self):
        for _ in range(5):  # a ping a second
            header, *frames = self.socket.recv_multipart()
            header = msgpack.unpackb(header)
            if header[0] != PING:
                return header, frames
            self.say([PONG])
        raise AssertionError("nothing but pings")

    def answers(self):
        """All that was said before the answer to an echo, which must come."""
        self.number, heard = self.number + 1, []
        self.say([REQUEST, self.number, "echo", 9000, 0, [], b"%d" % self.number])
        while True:
            header, frames = self.hear()
            if header[:2] == [REPLY, self.number]:
                assert header[3] == b"%d" % self.number
                return heard
            heard.append((header, frames))


@contextmanager
def raw_peer(endpoint, ring):
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger, socket.sndtimeo, socket.rcvtimeo = 0, 5000, 5000
        keys = ring.keys("device")
        socket.curve_publickey, socket.curve_secretkey = keys.public.encode(), keys.secret.encode()
        socket.curve_serverkey = ring.public("server").encode()
        socket.connect(endpoint)
        peer = Raw(socket)
        peer.say([HELLO, 1, 2, "raw", os.urandom(16), 1, LIMITS])
        assert peer.hear()[0][:2] == [WELCOME, 2]
        yield peer


def reconciles(stats):
    """Requests that came are executed or turned away, and whoever asked has an outcome or waits for it."""
    total = stats.total
    return (
        total.received == total.executed + total.duplicates + total.repeated + total.turned_away
        and total.started == total.outstanding + total.answered + total.refused + total.expired + total.cancelled
        and (total.pending, total.bytes_pending) == (0, 0)
    )


class World:
    """A node that answers, another peer of it, and a raw one of which something strange is to be heard."""

    def __init__(self, server, link, peer):
        self.server, self.link, self.peer = server, link, peer

    def saying(self, frames):
        """What is answered to frames before the next echo, and by how much malformed grew, at the node and its link."""
        before = self.server.stats()
        self.peer.say(*frames)
        heard = self.peer.answers()
        after = self.server.stats()
        assert after.total.reconnects == 0
        assert (len(after.peers), reconciles(after)) == (2, True), after
        return heard, (after.malformed - before.malformed, after.total.malformed - before.total.malformed)

    def check(self):
        """The other peer noticed nothing."""
        array = np.arange(30_000)
        reply = self.link.request("echo", b"other", [array])
        assert (reply.payload, bytes(reply.arrays[0])) == (b"other", array.tobytes())
        stats = self.link.stats()
        assert (stats.malformed, stats.reconnects, stats.refused, stats.retries) == (0, 0, 0, 0)


@pytest.fixture
def world(ring, tmp_path, caplog):
    caplog.set_level(logging.ERROR, "edgebus")
    with ring.server() as server, ring.device() as device:
        server.handle("echo", lambda request: request.reply(request.payload, request.arrays))
        endpoint = server.bind(f"ipc://{tmp_path}/socket")
        link = device.connect(endpoint, ring.public("server"))
        with raw_peer(endpoint, ring) as peer:
            world = World(server, link, peer)
            yield world
            world.check()
    assert caplog.records == []


@pytest.mark.parametrize("position", ["behind all fields", "of terms", "of an array"])
def test_fields_that_nobody_knows_are_ignored_and_the_request_is_answered(world, position):
    for number, (name, field) in enumerate(IGNORED_FIELDS.items(), ID):
        if position == "behind all fields":
            header, content = raw(asked(id=number), field, field), []
        elif position == "of terms":
            terms = raw([0, b"", -1, 0, 0, 0], field)
            header, content = raw([REQUEST, number, "echo", 9000, 0, [], b"in"], terms), []
        else:
            specs = b"\x91" + raw(["u1", [2]], field)
            header, content = raw([REQUEST, number, "echo", 9000, 0], specs, msgpack.packb(b"in")), [b"ab"]
        heard, malformed = world.saying([header, *content])
        assert malformed == (0, 0), name
        [(reply, frames)] = heard
        assert (reply[:2], reply[3], frames) == ([REPLY, number], b"in", content), name


def test_request_that_does_not_add_up_is_refused_by_name(world):
    for name, frames in REFUSED.items():
        heard, malformed = world.saying(frames)
        assert malformed == (1, 1), name
        [(refusal, info)] = heard
        assert (refusal[:3], info) == ([REFUSAL, ID, "malformed"], [b""]), name
        assert refusal[3], name


@pytest.mark.parametrize(
    ("said", "counted"), [(DROPPED, (1, 1)), (WITHOUT_EFFECT, (0, 0))], ids=["no header", "header"]
)
def test_what_is_no_header_or_without_effect_is_not_answered(world, said, counted):
    for name, frames in said.items():
        assert world.saying(frames) == ([], counted), name


@pytest.mark.parametrize("service", ["edgebus.blob", "edgebus.state/t"])
def test_question_that_a_service_of_the_bus_cannot_read_is_refused_by_name(world, service):
    world.server.publish("t", "k", b"v")
    terms, code = ([2, b"", -1, 0, 0, 1000], "invalid") if service == "edgebus.state/t" else (None, "malformed")
    with serve_blobs(world.server, {manifest_of(b"content").blob_id: b"content"}):
        for number, payload in enumerate(NO_QUESTIONS, ID):
            world.peer.say(asked(id=number, service=service, inline=payload, terms=terms))
            refusal, info = world.peer.hear()
            assert (refusal[:3], info) == ([REFUSAL, number, code], [b""]), payload
        have = [4, [bytes.fromhex(manifest_of(b"content").blob_id)], {"more": NAN}]
        world.peer.say(asked(id=ID - 1, service="edgebus.blob", inline=msgpack.packb(have)))
        reply, _ = world.peer.hear()
        assert (reply[:2], msgpack.unpackb(reply[3])) == ([REPLY, ID - 1], [[len(b"content")]])
        assert world.saying([asked(id=ID - 1, service="edgebus.blob", inline=b"")])[1] == (0, 0)


@pytest.mark.parametrize("name", EDGES)
def test_values_at_their_edges_are_answered_once_and_again_the_same(world, name):
    header, expected = asked(**EDGES[name][0]), EDGES[name][1]
    first, malformed = world.saying([header])
    assert malformed == (0, 0)
    [(answer, _)] = first
    assert [answer[0], answer[2] if answer[0] == REFUSAL else answer[3]] == expected
    executed = world.server.stats().total.executed
    assert world.saying([header]) == (first, (0, 0))
    assert world.server.stats().total.executed == executed + 1, "the echo behind it alone"


def test_who_says_that_it_has_all_outcomes_hears_that_of_each_request_and_the_others_go_on(world):
    world.peer.say(asked(settled_below=2**63 - 1))
    assert world.peer.hear()[0][:3] == [REFUSAL, ID, "forgotten"]
    world.peer.say(asked(id=ID + 1))
    assert world.peer.hear()[0][:3] == [REFUSAL, ID + 1, "forgotten"]


# -- the other end: what a server answers ---------------------------------------------------------------

ANSWERS = {  # to a request: refused "malformed" at whoever asked
    "dtype": [[["O8", [1]]], b""],
    "shape": [[["u1", [2**40, 2**40]]], b""],
    "a frame too few": [[["u1", [3]]], b""],
    "size of a transfer": [[], None, 0, [1, [2**48]]],
    "blocks without arrays": [[], b"", 0, None, [BLOCK]],
    "transfer and blocks": [[], None, 0, [1, [0]], []],
}
NO_ANSWERS = [  # for request {id}: ignored, and the right one behind them counts
    [REPLY, 2**63, [], b""],
    [REPLY, NAN, [], b""],
    [REPLY, "{id}", {"u1": [1]}, b""],
    [REPLY, "{id}", [], b"", -1],
    [REPLY, "{id}", [["u1", [-1]]], b""],
    [REPLY, "{id}", [], "text"],
    [REFUSAL, "{id}", None, ""],
    [PART, "{id}", NAN],
    [CREDIT, "{id}", 2**63],
    [99, "{id}", [], b""],
    TWICE,
    DEEP,
]


def answer(socket, errors):
    """A server by hand: greets, and answers each service by its name until it is told that the link is closed."""
    try:
        while True:
            route, header, *_ = socket.recv_multipart()
            tag, *fields = msgpack.unpackb(header)

            def say(header, *frames, route=route):
                socket.send_multipart([route, header if isinstance(header, bytes) else msgpack.packb(header), *frames])

            match tag:
                case 1:
                    say(raw([WELCOME, 2, "raw", bytes(16), fields[4], LIMITS, 0, None], TWICE))
                case 7:
                    say([PONG])
                case 9:
                    return
                case 4 if fields[1] in ANSWERS:
                    say([REPLY, fields[0], *ANSWERS[fields[1]]])
                case 4:
                    for wrong in NO_ANSWERS:
                        is_list = isinstance(wrong, list)
                        say([fields[0] if each == "{id}" else each for each in wrong] if is_list else wrong)
                    say(raw([REPLY, fields[0], [], b"right", 0, None, None], DEEP_FIELD))
    except BaseException as error:
        errors.append(error)


def test_answer_that_does_not_add_up_ends_its_request_and_what_is_no_answer_ends_none(ring, tmp_path, caplog):
    caplog.set_level(logging.ERROR, "edgebus")
    errors = []
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket, ring.device() as device:
        socket.linger, socket.rcvtimeo, socket.sndtimeo = 0, 5000, 5000
        socket.curve_server, socket.curve_secretkey = True, ring.keys("server").secret.encode()
        socket.bind(f"ipc://{tmp_path}/socket")
        thread = threading.Thread(target=answer, args=(socket, errors))
        thread.start()
        link = device.connect(f"ipc://{tmp_path}/socket", ring.public("server"))
        for number, name in enumerate(ANSWERS, 1):
            with pytest.raises(edgebus.Refused) as caught:
                link.request(name)
            assert caught.value.code == "malformed", name
            assert link.request("right", timeout_s=5).payload == b"right", name
            stats = link.stats()
            assert (stats.refused, stats.answered, stats.outstanding, stats.retries) == (number, number, 0, 0)
            assert stats.malformed == number * (1 + len(NO_ANSWERS))
        assert link.health == "up"
        link.close()
        thread.join(5)
        assert not thread.is_alive()
    assert (errors, caplog.records) == ([], [])
