"""The chat page in headless Chromium; skipped where there is none (`make page` installs it).

A toy target answers, so this is fast; the last test asks the real small model and leaves pictures in demo-out/.
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

import edgebus
from sled.api.guard import Access
from sled.run.device import Device
from sled.testing import ToyDrafter, ToyTarget, serving
from tests.sled.api.serving import serving_http

playwright_api = pytest.importorskip("playwright.sync_api", reason="the page is tested where playwright is installed")

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
OUT = Path(__file__).parents[2] / "demo-out"
TOKEN = "a-token-of-thirty-two-characters"

pytestmark = [pytest.mark.net, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: `make page` installs it")]


@pytest.fixture(scope="module")
def browser():
    with playwright_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def open_page(browser):
    """`open_page(url)`: the page, which must log no error and ask nobody but its own server."""
    pages, problems = [], []

    def open_(url, *, width=1280, height=820, scheme="dark", scale=1, settings=None):
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, device_scale_factor=scale
        )
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: request.url.startswith((url, "data:")) or problems.append(request.url))
        if settings is not None:
            page.add_init_script(f"localStorage.setItem('sled-chat', {json.dumps(json.dumps(settings))})")
        page.goto(f"{url}/")
        pages.append(context)
        return page

    yield open_
    for context in pages:
        context.close()
    assert problems == []


@contextmanager
def toy_api(**options):
    target = ToyTarget(max_positions=1000)
    with edgebus.Node("server", insecure=True) as node:
        endpoint = node.bind("tcp://127.0.0.1:0")

        def make():
            return Device(endpoint, insecure=True, drafter=ToyDrafter(target, error=0.3))

        with serving(node, target), serving_http(make, **options) as api:
            yield api


@pytest.fixture(scope="module")
def api():
    with toy_api() as running:
        yield running


def ask(page, text):
    page.fill("#prompt", text)
    page.press("#prompt", "Enter")


def finished(page, number=1):
    page.wait_for_selector(f".answer[aria-busy=false] >> nth={number - 1}")


def test_answer_is_what_the_api_says_and_its_rounds_are_shown(api, open_page):
    page = open_page(api.url, settings={"seed": "4", "temperature": 1, "max_tokens": 200})
    ask(page, "hello")
    finished(page)
    body = {"messages": [{"role": "user", "content": "hello"}], "seed": 4, "max_tokens": 200, "top_p": 1}
    reply = api.ask("/v1/chat/completions", body, content_type="application/json").json
    assert page.inner_text(".answer .done") == reply["choices"][0]["message"]["content"]
    assert page.inner_text("#model") == "toy"
    assert float(page.inner_text("#f-length")) > 1
    assert page.inner_text("#f-accepted").endswith("%")
    assert int(page.inner_text("#f-bytes")) > 0
    page.click("button:has-text('Tokens')")
    assert page.locator(".token.drafted").count() > 0
    assert page.locator(".token.own").count() > 0
    shown = "".join(page.locator(".live .token").all_inner_texts())
    assert shown == reply["choices"][0]["message"]["content"]
    page.focus("#timeline")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#picked").startswith("Round 1,")
    assert page.locator(".token.lit").count() > 0
    page.keyboard.press("Escape")
    assert page.locator(".token.lit").count() == 0
    assert "tokens" in page.inner_text("#status")


def test_conversation_goes_on_and_begins_anew(api, open_page):
    page = open_page(api.url, settings={"max_tokens": 8, "seed": "4"})
    asked = []
    page.on("request", lambda request: "events" in request.url and asked.append(json.loads(request.post_data)))
    ask(page, "one")
    finished(page)
    ask(page, "two")
    finished(page, 2)
    assert [message["role"] for message in asked[1]["messages"]] == ["user", "assistant", "user"]
    page.click("#new")
    assert page.is_visible("#welcome")
    page.click("#ideas button >> nth=0")
    finished(page)
    assert len(asked[2]["messages"]) == 1


def test_stop_breaks_the_answer_off_and_frees_the_device(api, open_page):
    page = open_page(api.url, settings={"max_tokens": 900, "temperature": 0.3})
    page.route("**/sled/events", lambda route: route.continue_(post_data=endless(route.request.post_data)))
    ask(page, "go on and on")
    page.wait_for_selector(".token")
    page.keyboard.press("Escape")
    finished(page)
    assert "stopped" in page.inner_text(".foot .why") or "900 tokens" in page.inner_text(".foot .why")
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
    assert api.ask("/v1/chat/completions", body, content_type="application/json").status == 200


def endless(post_data):
    return json.dumps(json.loads(post_data) | {"logit_bias": {"0": -100}})


def told(*events):
    return "".join(f"data: {json.dumps(event)}\n\n" for event in events)


def canned(*events):
    """A route that answers with these events."""
    return lambda route: route.fulfill(status=200, content_type="text/event-stream", body=told(*events))


OPENED = {"type": "Opened", "server": "tcp://one:1", "num_prompt": 3, "committed": 3, "window_limit": 4, "at_s": 0.1}
SENT = {"type": "RoundSent", "base": 3, "drafted": 2, "hoped": False, "at_s": 0.2}
ROUND = {"type": "RoundEnded", "base": 3, "drafted": 2, "accepted": 1, "tokens": 2, "window_limit": 4, "batch": 1}
GUESS = {"type": "Speculative", "from_pos": 3, "tokens": [5, 6], "text": "The cat"}


def token(pos, text, drafted=False):
    return {"type": "Token", "id": 5, "pos": pos, "drafted": drafted, "text": text, "logprob": None}


def test_correction_shows_what_was_guessed(api, open_page):
    page = open_page(api.url)
    told_then = [token(3, "The", True), token(4, " dog"), GUESS | {"from_pos": 5, "text": " <b>barks"}]
    page.route("**/sled/events", canned(OPENED, GUESS, SENT, ROUND | {"sent_s": 0.2, "at_s": 0.4}, *told_then))
    ask(page, "hello")
    page.wait_for_selector(".problem")  # the stream ended without an answer
    assert page.inner_text(".answer .done") == "The dog"
    assert page.inner_text("#f-accepted") == "50 %"
    page.click("button:has-text('Tokens')")
    assert page.get_attribute(".live .own", "title") == "guessed here: cat"


def test_lost_server_shows_unverified_text_until_it_is_corrected(api, open_page):
    page = open_page(api.url)
    lost = {"type": "ServerLost", "server": "tcp://one:1", "reason": "down", "at_s": 0.3}
    unverified = [{"type": "Unverified", "id": 9, "pos": 4 + i, "text": text} for i, text in enumerate((" a", " b"))]
    page.route("**/sled/events", canned(OPENED, token(3, "Yes"), lost, *unverified))
    ask(page, "hello")
    page.wait_for_selector(".problem")
    assert page.text_content(".answer .unverified") == " a b"
    page.unroute("**/sled/events")
    again = OPENED | {"server": "tcp://two:2", "committed": 4, "at_s": 0.5}
    corrected = [again, token(4, " a"), {"type": "Retracted", "from_pos": 5}, token(5, " c")]
    page.route("**/sled/events", canned(OPENED, token(3, "Yes"), lost, *unverified, *corrected))
    page.click("button:has-text('Try again')")
    page.wait_for_selector(".problem")
    assert page.inner_text(".answer .done") == "Yes a c"
    assert page.inner_text(".answer .unverified") == ""


@pytest.mark.parametrize("status", [429, 503])
def test_refusal_is_said_and_can_be_tried_again(api, open_page, status):
    page = open_page(api.url, settings={"max_tokens": 8})
    error = {"error": {"message": "come later", "type": "x", "param": None, "code": "x"}}
    page.route("**/sled/events", lambda route: route.fulfill(status=status, json=error))
    ask(page, "hello")
    page.wait_for_selector(".problem >> text=come later")
    page.unroute("**/sled/events")
    page.click("button:has-text('Try again')")
    finished(page)
    assert page.locator(".problem").count() == 0


def test_what_the_model_says_is_text_and_never_markup(api, open_page):
    page = open_page(api.url)
    text = "<img src=x onerror=alert(1)> **bold** `<b>`\n\n- one\n- <script>alert(1)</script>\n\n```\n<i>\n```"
    stats = {"bytes_per_token": 9, "tokens_per_s": 5, "first_token_s": 0.1}
    answer = {"type": "Answer", "finish_reason": "stop", "text": text, "stats": stats}
    page.route("**/sled/events", canned(OPENED, token(3, text), answer))
    ask(page, "<b>hello</b>")
    finished(page)
    assert page.inner_text(".user") == "<b>hello</b>"
    assert page.locator(".done img, .done script, .done b, .done i").count() == 0
    assert page.inner_text(".answer strong") == "bold"
    assert page.inner_text(".answer pre") == "<i>"
    assert page.locator(".answer li").count() == 2


def test_token_is_asked_for_and_kept(open_page):
    with toy_api(access=Access((TOKEN,))) as api:
        page = open_page(api.url, settings={"max_tokens": 8})
        page.wait_for_selector("#ask-token[open]")
        page.fill("#token", TOKEN)
        page.press("#token", "Enter")
        page.wait_for_selector("#model >> text=toy")
        ask(page, "hello")
        finished(page)


@pytest.mark.parametrize(("width", "height"), [(1280, 820), (390, 844), (320, 568), (844, 390)])
def test_nothing_sticks_out_at_any_width(api, open_page, width, height):
    page = open_page(api.url, width=width, height=height, settings={"max_tokens": 60, "temperature": 0.5})
    ask(page, "hello " * 40)
    finished(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.documentElement.scrollHeight") <= height
    for name in ("#send", "#new", "#open-settings"):
        box = page.locator(name).bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        assert box["width"] >= 24


def test_keyboard_reaches_everything_and_dialogs_close(api, open_page):
    page = open_page(api.url)
    reached = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.parentElement.id"))
    assert {"new", "open-settings", "ideas", "prompt"} <= reached
    page.focus("#open-settings")
    page.keyboard.press("Enter")
    page.fill("#seed", "12x")
    assert page.evaluate("JSON.parse(localStorage.getItem('sled-chat') ?? '{}').seed ?? ''") == ""
    page.fill("#seed", "12")
    page.keyboard.press("Escape")
    assert page.evaluate("JSON.parse(localStorage.getItem('sled-chat')).seed") == "12"
    assert not page.is_visible("#settings")
    named = "e => e.ariaLabel || e.textContent.trim() || e.labels?.length"
    unnamed = page.evaluate(
        f"[...document.querySelectorAll('button,input,textarea')].filter(e => !({named})(e)).map(e => e.outerHTML)"
    )
    assert unnamed == []


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.timeout(400)
def test_real_model_answers_on_the_page(server, keys, open_page, tmp_path):
    OUT.mkdir(exist_ok=True)

    def make():
        key = keys / "server" / "node.key"
        return Device(
            server["endpoint"], server_key=key, keys=keys / "device", drafter="smollm2-12m", threads=1, timeout_s=60
        )

    looks = [("chat", 1280, 860, "dark", 1, 2), ("chat-light", 1280, 860, "light", 1, 3)]
    looks += [("chat-phone", 390, 844, "light", 2, 0), ("chat-phone-dark", 390, 844, "dark", 2, 1)]
    with serving_http(make) as api:
        for name, width, height, scheme, scale, idea in looks:
            look = {"width": width, "height": height, "scheme": scheme, "scale": scale}
            page = open_page(api.url, **look, settings={"seed": "7", "max_tokens": 120})
            page.set_default_timeout(120_000)
            page.click(f"#ideas button >> nth={idea}")
            page.wait_for_selector(".live .token:nth-child(30), .done p")
            for _ in range(300):  # a moment in which something is guessed
                if len(page.text_content(".spec")) > 12:
                    break
                page.wait_for_timeout(10)
            page.screenshot(path=OUT / f"{name}-writing.png")
            finished(page)
            page.wait_for_timeout(300)
            page.screenshot(path=OUT / f"{name}.png")
            page.click("button:has-text('Tokens')")
            page.screenshot(path=OUT / f"{name}-tokens.png")
            assert int(page.inner_text("#f-rounds")) >= 30
    assert os.path.getsize(OUT / "chat.png") > 20_000
