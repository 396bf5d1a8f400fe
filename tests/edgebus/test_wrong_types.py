"""What an application gives by mistake: every public entry says so at once and names the argument, nothing waits."""

from __future__ import annotations

import contextlib
import math

import numpy as np
import pytest

import edgebus
from edgebus import aio
from edgebus.members import Patience
from edgebus.messages import stream_terms, terms_of

pytestmark = pytest.mark.net
NOT_WHOLE = [1e6, 1.5, True, math.nan, "3", None, np.ones(2)]
NOT_TEXT = [None, 5, b"tcp://127.0.0.1:0", ["x"]]
KEY = "k" * 40


@pytest.fixture
def world():
    with edgebus.Node("server", insecure=True) as server, edgebus.Node("device", insecure=True) as device:
        server.handle("count", lambda request: (request.push(b"%d" % request.from_pos), request.reply(b"")))
        endpoint = server.bind("tcp://127.0.0.1:0")
        yield server, device, device.connect(endpoint), endpoint


@pytest.mark.parametrize("face", [lambda link: link, lambda link: aio.calling.Link(link, False)], ids=["sync", "aio"])
@pytest.mark.parametrize("name", ["from_pos", "window_bytes"])
def test_stream_names_a_number_that_cannot_travel(world, face, name):
    link = face(world[2])
    for value in NOT_WHOLE:
        with pytest.raises(TypeError, match=f"{name} must be a whole number"):
            link.stream("count", **{name: value})
    for value in (-1, 2**70):
        with pytest.raises(ValueError, match=f"{name} must be in"):
            link.stream("count", **{name: value})


def test_bounds_of_a_stream_are_those_of_the_wire():
    assert stream_terms(2**63 - 1, 2**48).from_pos == 2**63 - 1
    for from_pos, window_bytes in ((2**63, 1), (0, 2**48 + 1), (0, 0)):
        with pytest.raises(ValueError, match="must be in"):
            stream_terms(from_pos, window_bytes)


@pytest.mark.parametrize("bad", [2.5, True, "1", None, 2**70, -1])
def test_sequence_takes_whole_numbers_only(world, bad):
    link = world[2]
    for sequence in ((1, bad), (bad, 1)):
        for call in (link.request, link.send_request, link.send):
            with pytest.raises(ValueError, match=r"sequence is \(stream, position\), both whole numbers"):
                call("count", sequence=sequence)


def test_numbers_of_numpy_travel(world):
    link = world[2]
    stream = link.stream("count", timeout_s=5, from_pos=np.int64(3), window_bytes=np.int32(1000))
    assert [(part.pos, part.payload) for part in stream] == [(3, b"3")]
    assert terms_of(0, b"", (np.int64(1), np.uint8(3))).pos == 3
    assert link.request("edgebus.ping", b"x", sequence=(1, np.int64(3)), timeout_s=5).payload == b"x"


@pytest.mark.parametrize("make", [edgebus.Node, aio.Node])
@pytest.mark.parametrize("value", ["false", "0", "", 0, 1, None, []])
def test_insecure_is_true_or_false(make, value):
    with pytest.raises(TypeError, match="insecure must be True or False"):
        make("a", insecure=value)


@pytest.mark.parametrize("make", [edgebus.Node, aio.Node])
@pytest.mark.parametrize("value", [5, {}, [], "", 0])
def test_the_other_arguments_of_a_node_are_what_they_say(make, value):
    with pytest.raises(TypeError, match="limits must be Limits"):
        make("a", insecure=True, limits=value)
    with pytest.raises(TypeError, match="keys must be"):
        make("a", keys=value)
    with pytest.raises(TypeError, match="allow must be"):
        make("a", allow=value)
    if value != "":
        with pytest.raises(TypeError, match="name must be a string"):
            make(value, insecure=True)


@pytest.mark.parametrize("value", [True, 1.0, "5", None, 2**70, -1])
def test_limits_are_whole_numbers_that_the_wire_takes(value):
    for name in ("max_frames", "max_frame_bytes", "bulk_bytes", "max_pending", "share_bytes"):
        with pytest.raises(edgebus.ConfigError, match=f"{name} must be"):
            edgebus.Limits(**{name: value})
    if value is True or not isinstance(value, int | float):
        with pytest.raises(edgebus.ConfigError, match="heartbeat_s must be seconds"):
            edgebus.Limits(heartbeat_s=value)


def test_limits_of_numpy_are_taken_as_numbers():
    assert type(edgebus.Limits(max_frames=np.int64(64)).max_frames) is int


def test_keys_are_text_and_what_is_wrong_with_them_is_not_told():
    for public, secret in ((None, None), (KEY, None), (None, KEY), (b"k" * 40, b"s" * 40)):
        with pytest.raises(TypeError, match="two strings") as caught:
            edgebus.Keys(public, secret)
        assert KEY not in str(caught.value)


WRONG_SERVERS = {
    "no scheme": ("127.0.0.1:7000", None, edgebus.ConfigError, "is not tcp://HOST:PORT"),
    "none": (None, None, TypeError, "endpoint must be a string"),
    "a number for a key": ("tcp://127.0.0.1:7000", 5, TypeError, "server_key must be a string"),
    "a key in plaintext": ("tcp://127.0.0.1:7000", KEY, edgebus.ConfigError, "would send plaintext"),
}


@pytest.mark.parametrize("wrong", WRONG_SERVERS)
def test_pool_refuses_what_connect_would(world, wrong):
    _, device, _, good = world
    endpoint, key, error, text = WRONG_SERVERS[wrong]
    with pytest.raises(error, match=text):
        device.connect(endpoint, key)
    with pytest.raises(error, match=text):
        edgebus.Pool(device, [(good, None), (endpoint, key)])
    with edgebus.Pool(device, [(good, None)]) as pool:
        with pytest.raises(error, match=text):
            pool.add(endpoint, key)
        assert len(pool.stats().members) == 1


def test_pool_of_a_secured_node_needs_keys_of_the_servers():
    with edgebus.Node("a", keys=edgebus.Keys(KEY, KEY)) as node:
        for key, error in ((None, edgebus.InsecureError), ("short", edgebus.ConfigError)):
            with pytest.raises(error, match="server_key"):
                edgebus.Pool(node, [("tcp://127.0.0.1:7000", key)])


WRONG_OPTIONS = {
    "trusted of text": ({"trusted": KEY}, TypeError, "trusted must be a list"),
    "trusted of nothing": ({"trusted": None}, TypeError, "trusted must be a list"),
    "trusted of no keys": ({"trusted": ["short"]}, edgebus.ConfigError, "trusted must be public keys"),
    "patience": ({"patience": 5}, TypeError, "patience must be"),
    "dial_s": ({"patience": Patience(dial_s="2")}, TypeError, "dial_s must be"),
    "move_s": ({"patience": Patience(move_s=math.nan)}, ValueError, "move_s must be"),
    "hints": ({"hints": 5}, TypeError, "hints must be"),
    "service": ({"service": 5}, TypeError, "service must be a string"),
}


@pytest.mark.parametrize("wrong", WRONG_OPTIONS)
def test_pool_names_an_option_that_cannot_be(world, wrong):
    options, error, text = WRONG_OPTIONS[wrong]
    with pytest.raises(error, match=text):
        edgebus.Pool(world[1], [(world[3], None)], **options)


@pytest.mark.parametrize("endpoints", [5, "tcp://127.0.0.1:7000", ["tcp://127.0.0.1:7000"], [5], ["ab"], [(1, 2, 3)]])
def test_pool_says_what_endpoints_are(world, endpoints):
    with pytest.raises(TypeError, match="endpoints must be"):
        edgebus.Pool(world[1], endpoints)


def test_pool_needs_a_node(world):
    for node in (5, None, aio.Node(sync=world[1])):
        with pytest.raises(TypeError, match=r"node must be an edgebus\.Node"):
            edgebus.Pool(node, [(world[3], None)])


@pytest.mark.parametrize("value", NOT_TEXT)
def test_an_address_is_text(world, value):
    server, device, link, _ = world
    for call in (server.bind, device.connect, link.move):
        with pytest.raises(TypeError, match="endpoint must be a string"):
            call(value)


def test_a_key_to_move_to_or_connect_with_is_text(world):
    _, device, link, endpoint = world
    with pytest.raises(edgebus.ConfigError, match="server_key for"):
        link.move(endpoint, 5)
    for key in (5, [5], b"k" * 40):
        with pytest.raises(TypeError, match="server_key must be a string"):
            device.connect(endpoint, key)


WRONG_REFUSALS = [
    ((b"x", "detail"), TypeError, "code and detail of a refusal"),
    (("code", b"x"), TypeError, "code and detail of a refusal"),
    (("code", None), TypeError, "code and detail of a refusal"),
    (("", ""), ValueError, "code of a refusal must not be empty"),
    (("code", "detail", 5), TypeError, "info of a refusal"),
    (("code", "detail", "info"), TypeError, "info of a refusal"),
]


def test_refusal_is_text_and_can_still_be_made_after_a_slip(world):
    server, _, link, _ = world
    with contextlib.closing(server.serve("refused")) as inbox:
        for arguments, error, text in WRONG_REFUSALS:
            pending = link.send_request("refused", timeout_s=5)
            request = inbox.get(5)
            with pytest.raises(error, match=text):
                request.refuse(*arguments)
            assert not request.answered
            request.refuse("no", "", bytearray(b"why"))
            with pytest.raises(edgebus.Refused) as caught:
                pending.result()
            assert (caught.value.code, caught.value.info) == ("no", b"why")


def test_subscribe_needs_a_link_and_whole_bounds(world):
    for link in (5, None, world[1]):
        with pytest.raises(TypeError, match=r"link must be what Node\.connect returns"):
            edgebus.subscribe(link, "t")
    with pytest.raises(TypeError, match="max_keys must be a whole number"):
        edgebus.subscribe(world[2], "t", max_keys=1.5)


@pytest.mark.parametrize(
    ("service", "endpoints", "text"),
    [
        (2**70, ["tcp://10.0.0.1:7000"], "service must be a string"),
        ("a", "tcp://10.0.0.1:7000", "endpoints must be a list"),
        ("a", [5], "endpoints must be strings"),
    ],
)
def test_announcement_is_text(world, service, endpoints, text):
    with pytest.raises(TypeError, match=text):
        edgebus.announce(world[0], service, endpoints)


@pytest.mark.parametrize("value", NOT_WHOLE)
def test_depth_of_an_inbox_is_whole(world, value):
    with pytest.raises(TypeError, match="depth must be a whole number"):
        world[0].serve("deep", depth=value)
    assert "deep" not in world[0].services()


@pytest.mark.parametrize("value", [None, 5, "x"])
def test_what_is_called_can_be(world, value):
    server = world[0]
    with pytest.raises(TypeError, match="function must be something to call"):
        server.handle("never", value)
    with pytest.raises(TypeError, match="callback must be something to call"):
        server.tap(value)
    for call in (server.serve, lambda name: server.handle(name, print)):
        with pytest.raises(TypeError if not isinstance(value, str) else edgebus.ConfigError, match="service"):
            call(value if not isinstance(value, str) else "count")
