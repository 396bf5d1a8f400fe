"""Clients that are wrong, slow, hostile or gone: a clear error or an end, and the next one is answered."""

from __future__ import annotations

import contextlib
import json
import socket
import threading

import pytest

import sled
import sled.api.guard
import sled.api.http
from sled.api.guard import Access
from sled.testing import ToyDrafter
from tests.sled.api.serving import read_response

pytestmark = pytest.mark.net

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, "temperature": 0}
LONG = BODY | {"max_tokens": 4000, "logit_bias": {"0": -100}, "stream": True}
JSON = {"content_type": "application/json"}
KEY = "a-token-of-thirty-two-characters"


class Gated(ToyDrafter):
    """Drafts only once its gate is open."""

    def __init__(self, target, gate) -> None:
        super().__init__(target)
        self._gate = gate

    def draft(self, text, limit):
        assert self._gate.wait(20)
        return super().draft(text, limit)


def still_answers(api):
    assert api.ask(CHAT, BODY, **JSON).status == 200


def begin(api, body=LONG):
    """Ask for a stream and read its beginning."""
    data = json.dumps(body).encode()
    raw = api.connect()
    raw.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n" % len(data) + data
    )
    return raw


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),  # TLS
        b"hello\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: -5\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nhost: localhost\r\nx: " + b"a" * 70_000,
        b"GET / HTTP/1.1\r\nhost: localhost\r\n" + b"".join(b"h%d: x\r\n" % i for i in range(9000)),
    ],
    ids=["tls", "words", "zero", "length", "chunk", "header", "headers"],
)
def test_garbage_is_answered_with_400_and_the_end(api, data):
    with api.connect() as raw:
        raw.sendall(data)
        response = read_response(raw)
    assert response.status == 400
    if response.body.startswith(b"{"):
        assert response.error["type"] == "invalid_request_error"
    still_answers(api)


def test_garbage_behind_a_request_that_is_being_answered_does_no_harm(api):
    with begin(api) as raw:
        assert raw.recv(10)
        raw.sendall(b"\x00garbage\r\n\r\n" * 50)
    still_answers(api)


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{", JSON, 400),
        (b'{"a":' * 50_000, JSON, 400),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', JSON, 400),
        (b'{"messages": 3}', JSON, 400),
        (b"messages=hi", {"content_type": "application/x-www-form-urlencoded"}, 415),
        (b"{}", {"content_type": "text/plain"}, 415),
        (b"", {"content_length": "999999999", **JSON}, 413),
    ],
    ids=["cut", "deep", "surrogate", "type", "form", "plain", "large"],
)
def test_bodies_that_cannot_be_are_refused_with_an_error_object(api, body, headers, status):
    response = api.ask(CHAT, body, **headers)
    assert response.status == status
    assert response.error["message"]
    still_answers(api)


def test_body_that_grows_over_the_limit_in_chunks_is_refused(api, monkeypatch):
    monkeypatch.setattr(sled.api.guard, "MAX_BODY_BYTES", 100)
    body = b"".join(b"20\r\n" + b" " * 32 + b"\r\n" for _ in range(8))
    response = api.ask(CHAT, body, method="POST", content_length=None, transfer_encoding="chunked", **JSON)
    assert response.status == 413


def test_body_that_does_not_come_is_given_up(api, monkeypatch):
    monkeypatch.setattr(sled.api.guard, "BODY_WITHIN_S", 0.05)
    assert api.ask(CHAT, b"{", content_length="50", **JSON).status == 408


def test_request_that_does_not_come_ends_the_connection(api, monkeypatch):
    monkeypatch.setattr(sled.api.http, "HEADERS_WITHIN_S", 0.05)
    for said in (b"", b"GET / HTTP/1.1\r\nhost:"):
        with api.connect() as raw:
            raw.sendall(said)
            assert raw.recv(100) == b""
    still_answers(api)


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [("/v1/nothing", "GET", 404), ("/etc/passwd", "GET", 404), ("/static/../app.py", "GET", 404), (CHAT, "GET", 405),
     ("/static/..%2fapp.py", "GET", 404), ("/v1/models", "DELETE", 405)],
)  # fmt: skip
def test_paths_that_are_not_there_are_error_objects(api, path, method, status):
    response = api.ask(path, method=method)
    assert (response.status, response.error["type"]) == (status, "invalid_request_error")


def test_page_of_another_name_or_origin_is_refused(start_api):
    access = Access(hosts=frozenset({"chat.local"}), origins=frozenset({"https://app.example"}))
    with start_api(access=access) as api:
        for host, status in (("evil.example", 403), ("evil.example:8000", 403), ("localhost.evil.example", 403),
                             ("localhost:1", 200), ("[::1]:9", 200), ("127.9.9.9", 200), ("chat.local", 200), ("", 403),
                             ("[", 403)):  # fmt: skip
            assert api.ask("/v1/models", host=host).status == status, host
        for origin, status in (("http://evil.example", 403), ("null", 403), ("http://localhost:9", 403),
                               (api.url, 200), ("https://app.example", 200)):  # fmt: skip
            response = api.ask(CHAT, BODY, origin=origin, **JSON)
            assert response.status == status, origin
            allowed = response.headers.get("access-control-allow-origin")
            assert allowed == ("https://app.example" if "app.example" in origin else None)
        ask = {"access_control_request_method": "POST", "access_control_request_headers": "x-stainless-os"}
        good = api.ask(CHAT, method="OPTIONS", origin="https://app.example", **ask)
        assert good.headers["access-control-allow-headers"] == "x-stainless-os"
        assert api.ask(CHAT, method="OPTIONS", origin="https://evil.example", **ask).status == 403


def test_page_comes_with_headers_that_keep_others_out(api):
    page = api.ask("/")
    assert page.status == 200
    assert page.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
    assert page.headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in page.headers
    for name, kind in (("chat.js", "text/javascript"), ("chat.css", "text/css"), ("icon.svg", "image/svg+xml")):
        assert api.ask(f"/static/{name}").headers["content-type"].startswith(kind)


def test_with_a_token_the_page_is_open_and_nothing_else(start_api):
    with start_api(access=Access((KEY,))) as api:
        assert api.ask("/").status == api.ask("/healthz").status == api.ask("/static/chat.js").status == 200
        for path, body in (("/v1/models", None), ("/sled/info", None), (CHAT, BODY), ("/sled/events", BODY)):
            without = api.ask(path, body, **JSON)
            assert (without.status, without.headers["www-authenticate"]) == (401, "Bearer")
            assert without.error["code"] == "invalid_api_key"
            for wrong in ("Bearer x", f"Basic {KEY}", f"Bearer {KEY}x", "Bearer", f"Bearer \xff{KEY}"):
                assert api.ask(path, body, authorization=wrong, **JSON).status == 401
            assert api.ask(path, body, authorization=f"bearer {KEY}", host="any.name", **JSON).status == 200


def test_client_that_hangs_up_in_the_middle_frees_the_device(api):
    for _ in range(3):
        with begin(api) as raw:
            assert b"200 OK" in raw.recv(100)
    still_answers(api)
    with begin(api, LONG | {"stream": False}):
        pass
    still_answers(api)
    assert api.pool.waiting == 0


def test_client_that_takes_nothing_is_cut_off(api, monkeypatch):
    monkeypatch.setattr(sled.api.http, "STALLED_AFTER_S", 0.05)
    body = LONG | {"logprobs": True, "top_logprobs": 20, "max_tokens": 4000}
    with begin(api, body) as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        still_answers(api)  # waits for the one device, which the stalled client must have lost


def test_beyond_the_queue_requests_are_told_to_come_later(served, start_api):
    gate = threading.Event()
    with start_api(lambda: Gated(served.target, gate), queue=1) as api:
        first = begin(api)
        assert first.recv(20)  # it has begun: the device is taken
        second = begin(api, BODY)
        while api.pool.waiting < 1:
            assert api.ask("/healthz").status == 200
        third = api.ask(CHAT, BODY, **JSON)
        assert (third.status, third.error["code"]) == (429, "queue_full")
        assert int(third.headers["retry-after"]) >= 1
        first.close()
        gate.set()
        with second:
            assert b"200 OK" in second.recv(100)


def test_one_who_waits_and_hangs_up_makes_room(served, start_api):
    gate = threading.Event()
    with start_api(lambda: Gated(served.target, gate), queue=1) as api, begin(api) as first:
        assert first.recv(20)
        waiting = begin(api, BODY)
        while api.pool.waiting < 1:
            assert api.ask("/healthz").status == 200
        waiting.close()
        for _ in range(500):  # until it is noticed that nobody waits any more
            with begin(api, BODY) as raw:
                raw.settimeout(0.1)
                with contextlib.suppress(TimeoutError):
                    assert b" 429 " in raw.recv(100)
                    continue
                raw.settimeout(20)  # this one was let in
                gate.set()
                first.close()
                assert b" 200 " in raw.recv(100)
                return
        raise AssertionError("whoever hung up still takes a place")


def test_end_lets_an_answer_finish_and_refuses_new_ones(served, start_api):
    gate = threading.Event()
    with start_api(lambda: Gated(served.target, gate)) as api:
        with begin(api, BODY | {"stream": True}) as raw, begin(api, BODY) as waiting:
            assert raw.recv(20)
            while api.pool.waiting < 1:
                assert api.ask("/healthz").status == 200
            api.server.stop()
            refused = read_response(waiting)
            assert (refused.status, refused.error["code"]) == (503, "shutting_down")
            gate.set()
            assert b"[DONE]" in read_response_after(raw)
        api.thread.join(20)
        assert not api.thread.is_alive()


def test_end_cuts_what_takes_too_long(served, start_api):
    gate = threading.Event()
    with start_api(lambda: Gated(served.target, gate), drain_s=0.0) as api, begin(api) as raw:
        assert raw.recv(20)
        api.server.stop()
        assert b'"code":"shutting_down"' in read_response_after(raw)
        api.thread.join(20)
        assert not api.thread.is_alive()
        gate.set()


def read_response_after(raw) -> bytes:
    return b"".join(iter(lambda: raw.recv(65536), b""))


def test_two_devices_answer_two_requests_at_once(served, start_api):
    gate = threading.Event()
    with start_api(lambda: Gated(served.target, gate), parallel=2) as api, begin(api) as one, begin(api) as two:
        assert one.recv(20)
        assert two.recv(20)
        assert api.pool.busy == 2
        gate.set()


def test_events_tell_rounds_and_tokens_of_one_answer(api):
    response = api.ask("/sled/events", BODY | {"max_tokens": 12}, **JSON)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = [json.loads(line[6:]) for line in response.body.decode().splitlines() if line.startswith("data: ")]
    kinds = [event["type"] for event in events]
    assert (kinds[0], kinds[-2:]) == ("Queued", ["Finished", "Answer"])
    assert {"Opened", "Speculative", "RoundSent", "RoundEnded", "Token"} <= set(kinds)
    text = "".join(event["text"] for event in events if event["type"] == "Token")
    assert (
        text
        == events[-1]["text"]
        == api.ask(CHAT, BODY | {"max_tokens": 12}, **JSON).json["choices"][0]["message"]["content"]
    )
    assert events[-1]["stats"]["rounds"] == sum(e["type"] == "RoundEnded" and e["tokens"] > 0 for e in events)
    assert api.ask("/sled/events", BODY | {"n": 2}, **JSON).status == 400
    late = api.ask("/sled/events", BODY | {"messages": [{"role": "user", "content": "x" * 5000}]}, **JSON)
    assert b'"type":"Error"' in late.body
    assert b"context_length_exceeded" in late.body


def test_device_that_fails_is_replaced(served, start_api, monkeypatch):
    made, right = [], sled.Device.generate

    def drafter():
        made.append(1)
        return ToyDrafter(served.target)

    def generate(*arguments, **options):
        if len(made) == 1:
            raise RuntimeError("secret /path of ours")
        return right(*arguments, **options)

    monkeypatch.setattr(sled.Device, "generate", generate)
    with start_api(drafter) as api:
        failed = api.ask(CHAT, BODY, **JSON)
        assert (failed.status, failed.error["code"]) == (500, "internal_error")
        assert "secret" not in failed.error["message"]
        still_answers(api)
        assert len(made) == 2


def test_a_drafter_that_fails_costs_no_answer(served, start_api):
    class Broken(ToyDrafter):
        def draft(self, text, limit):
            raise RuntimeError("out of order")

    with start_api(lambda: Broken(served.target)) as api:
        still_answers(api)
