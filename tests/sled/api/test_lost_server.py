"""An answer whose server is lost, as HTTP clients see it: what nobody has verified is never passed for the target's."""

from __future__ import annotations

import json

import pytest

from edgebus.testing import Proxy
from sled.testing import ToyDrafter
from sled.window import Window
from tests.sled.api.serving import serving_http

CHAT, EVENTS = "/v1/chat/completions", "/sled/events"
BODY = {"messages": [{"role": "user", "content": "tell me"}], "max_tokens": 40, "temperature": 0}


@pytest.fixture(autouse=True)
def every_round_has_drafts(monkeypatch):
    """Where drafting looks too slow, as on a busy machine, the server streams alone, and nobody would cut it off."""
    monkeypatch.setattr(Window, "auto", lambda: Window(4))


def lost_after(served, path, body):
    """The answer to a request whose server goes away when the first tokens have come, and stays away."""
    with served.serving() as endpoint, Proxy(endpoint) as proxy:

        class Cutting(ToyDrafter):
            def draft(self, text, limit):
                if len(text) > 12:
                    proxy.refuse()
                    proxy.cut()
                yield from super().draft(text, limit)

        def make():
            drafter = Cutting(served.target, error=0.0)
            options = {"on_loss": "release", "release_after_s": 0.0, "wait_s": 0.3}
            return served.device(proxy.endpoint, drafter, 1.0, **options)

        with serving_http(make) as api:
            return api.ask(path, json.dumps(body).encode(), **{"content-type": "application/json"})


def test_a_reply_without_its_server_is_an_error(served):
    reply = lost_after(served, CHAT, BODY)
    assert (reply.status, reply.error["code"]) == (503, "unverified")
    assert "retry-after" in reply.headers


def test_a_stream_without_its_server_ends_with_an_error(served):
    reply = lost_after(served, CHAT, BODY | {"stream": True})
    frames = [line.removeprefix(b"data: ") for line in reply.body.splitlines() if line.startswith(b"data: ")]
    assert json.loads(frames[-1])["error"]["code"] == "unverified"
    assert b"[DONE]" not in reply.body


def test_the_page_is_shown_what_is_unverified(served):
    reply = lost_after(served, EVENTS, BODY)
    events = [json.loads(line[6:]) for line in reply.body.splitlines() if line.startswith(b"data: {")]
    kinds = [event["type"] for event in events]
    assert "ServerLost" in kinds
    assert "Unverified" in kinds
    (answer,) = [event for event in events if event["type"] == "Answer"]
    assert answer["finish_reason"] == ""
    assert answer["unverified_text"] == "".join(event["text"] for event in events if event["type"] == "Unverified")
