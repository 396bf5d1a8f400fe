"""Device and server shells over real sockets with CURVE, the target a toy."""

from __future__ import annotations

import threading
import time

import pytest

import edgebus
import sled
from sled.errors import (
    AnswerIncomplete,
    ParameterError,
    PromptTooLong,
    ServerBusy,
    SessionUnknown,
    TargetChanged,
    VocabularyMismatch,
)
from sled.messages import Described
from sled.server import Refusal, Server, ServerLimits
from sled.testing import ToyDrafter, ToyTarget
from sled.types import Sampling, Token
from sled.window import Window

pytestmark = pytest.mark.net

PROMPT = [5, 6, 7, 8, 5, 6]
SAMPLED = Sampling(temperature=0.8, top_k=20, top_p=0.95, seed=3)


def right(served, sampling, num_tokens=40):
    return served.target.plain_answer(PROMPT, sampling, num_tokens)


@pytest.mark.parametrize("sampling", [Sampling(), SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("drafter", ["none", "ngram", "toy", "junk"])
def test_every_drafter_and_window_gives_the_targets_answer(served, sampling, drafter):
    expected = right(served, sampling)
    makers = {"toy": ToyDrafter(served.target), "junk": ToyDrafter(served.target, error=1.0)}
    with served.serving() as endpoint, served.device(endpoint, makers.get(drafter, drafter)) as device:
        for window in range(9):
            answer = device.generate(PROMPT, max_tokens=40, sampling=sampling, window=Window(window)).answer()
            assert answer.tokens == expected
            assert answer.prompt_tokens == PROMPT
            assert answer.stats.rounds <= len(expected)


def test_good_drafter_needs_fewer_rounds_and_bytes(served):
    with served.serving() as endpoint:
        answers = {}
        for name, drafter in (("none", "none"), ("toy", ToyDrafter(served.target, error=0.0))):
            with served.device(endpoint, drafter) as device:
                stream = device.generate(PROMPT, max_tokens=40, sampling=SAMPLED, window=Window(4))
                answers[name] = stream.answer()
    assert answers["toy"].stats.rounds <= -(-len(answers["none"].tokens) // 5) + 1
    assert answers["toy"].stats.acceptance_rate == 1.0
    assert answers["toy"].stats.bytes_per_token < answers["none"].stats.bytes_per_token / 2


def test_eight_devices_at_once_each_get_their_own_answer(served):
    prompts = {n: [n + 2, n + 3, n + 4] for n in range(8)}
    answers = {}

    def work(n, endpoint):
        with served.device(endpoint, ToyDrafter(served.target, seed=n)) as device:
            answers[n] = device.generate(prompts[n], max_tokens=40, sampling=SAMPLED, window=Window(n)).answer()

    with served.serving() as endpoint:
        threads = [threading.Thread(target=work, args=(n, endpoint)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    for n, prompt in prompts.items():
        assert answers[n].tokens == served.target.plain_answer(prompt, SAMPLED, 40)


def test_tokens_stream_and_say_who_proposed_them(served):
    expected = right(served, Sampling())
    with (
        served.serving() as endpoint,
        served.device(endpoint, ToyDrafter(served.target, error=0.0)) as device,
    ):
        stream = device.generate(PROMPT, max_tokens=10, window=Window(4))
        tokens = list(stream)
        assert [t.id for t in tokens] == expected[:10]
        assert [t.drafted for t in tokens] == [True] * 4 + [False] + [True] * 4 + [False]
        assert [t.pos for t in tokens] == list(range(6, 16))
        answer = stream.answer()
        assert answer.text == "".join(t.text for t in tokens) == "".join(f"<{i}>" for i in expected[:10])
        assert (answer.stats.rounds, answer.stats.drafted, answer.stats.accepted) == (2, 8, 8)


def test_lost_session_continues_the_same_answer(served):
    """A server that restarts between two rounds has no session; the device opens it again with its text."""
    expected = right(served, SAMPLED)
    with served.serving() as endpoint:
        device = served.device(endpoint)
        tokens = []
        stream = iter(device.generate(PROMPT, max_tokens=40, sampling=SAMPLED))
        tokens += [next(stream).id for _ in range(5)]
    with served.serving(endpoint, target=ToyTarget()), device:
        tokens += [token.id for token in stream]
    assert tokens == expected


def test_session_that_keeps_getting_lost_ends_in_an_error(served, monkeypatch):
    def forgetful(self, owner, message, ticket, *, now, arrived_at=None):
        raise Refusal("session_unknown", "open it again")

    monkeypatch.setattr(Server, "verify", forgetful)
    with (
        served.serving() as endpoint,
        served.device(endpoint) as device,
        pytest.raises(SessionUnknown, match="open it again"),
    ):
        device.generate(PROMPT, max_tokens=40).answer()


def test_vocabulary_is_fetched_once(served):
    with served.serving() as endpoint:
        with served.device(endpoint) as device:
            assert device.generate(PROMPT, max_tokens=2).answer().stats.vocabulary_bytes > 100
        with served.device(endpoint) as device:
            assert device.generate(PROMPT, max_tokens=2).answer().stats.vocabulary_bytes == 0


def test_prompt_too_long_is_refused_and_the_link_lives(served):
    with served.serving() as endpoint, served.device(endpoint) as device:
        with pytest.raises(PromptTooLong, match="shorten"):
            device.generate([1] * 5000, max_tokens=4).answer()
        assert device.generate(PROMPT, max_tokens=4).answer().tokens == right(served, Sampling())[:4]


def test_too_many_sessions_is_server_busy(served):
    limits = ServerLimits(max_sessions_per_owner=1)
    with (
        served.serving(limits=limits) as endpoint,
        served.device(endpoint) as device,
        served.device(endpoint, timeout_s=1.5) as other,
    ):
        first = device.generate(PROMPT, max_tokens=10)
        next(iter(first))
        began = time.monotonic()
        with pytest.raises(ServerBusy):
            other.generate(PROMPT, max_tokens=10).answer()
        assert 1.4 < time.monotonic() - began < 5.0  # it asked again until then
        first.close()
        assert other.generate(PROMPT, max_tokens=2).answer().tokens


def test_new_answer_waits_until_a_full_server_has_room(served):
    limits = ServerLimits(max_sessions=1)
    with served.serving(limits=limits) as endpoint, served.device(endpoint) as device, served.device(endpoint) as other:
        first = device.generate(PROMPT, max_tokens=10)
        next(iter(first))
        waiting = iter(other.generate(PROMPT, max_tokens=40, sampling=SAMPLED).events())
        assert "sessions are open" in next(waiting).reason
        first.close()
        tokens = [event.id for event in waiting if isinstance(event, Token)]
        assert tokens == right(served, SAMPLED)


def test_one_answer_at_a_time_per_device(served):
    """The drafter holds the state of one text."""
    with served.serving() as endpoint, served.device(endpoint) as device:
        first = device.generate(PROMPT, max_tokens=10)
        next(iter(first))
        with pytest.raises(ParameterError, match="close"):
            device.generate(PROMPT, max_tokens=10).answer()
        assert first.answer().tokens == right(served, Sampling())[:10]
        assert device.generate(PROMPT, max_tokens=2).answer().tokens


def test_broken_off_answer_is_not_given_out_as_whole(served):
    with served.serving() as endpoint, served.device(endpoint) as device:
        stream = device.generate(PROMPT, max_tokens=10)
        next(iter(stream))
        stream.close()
        with pytest.raises(AnswerIncomplete, match="after 1 token"):
            stream.answer()


def test_peer_that_cannot_take_the_answer_does_not_stop_the_server(served):
    keys = edgebus.load_keys(served.directory / "device")
    tiny = edgebus.Limits(max_frame_bytes=16)
    with served.serving() as endpoint, served.device(endpoint) as device:
        with edgebus.Node(keys=keys, limits=tiny) as node:
            link = node.connect(endpoint, server_key=edgebus.read_public_key(served.directory / "server" / "node.key"))
            with pytest.raises(edgebus.EdgebusError):
                link.request("sled.describe", timeout_s=2)
        assert device.generate(PROMPT, max_tokens=4).answer().tokens == right(served, Sampling())[:4]


def test_answer_is_not_continued_by_another_target(served):
    """A server that comes back with other weights must not finish the first one's sentence."""
    with served.serving() as endpoint:
        device = served.device(endpoint)
        stream = iter(device.generate(PROMPT, max_tokens=40, sampling=SAMPLED))
        next(stream)
    with served.serving(endpoint, target=ToyTarget(seed=1)), device, pytest.raises(TargetChanged, match="start again"):
        list(stream)


def test_abandoned_answer_frees_its_session(served):
    with served.serving() as endpoint, served.device(endpoint) as device:
        stream = iter(device.generate(PROMPT, max_tokens=40))
        next(stream)
        stream.close()
        device.generate(PROMPT, max_tokens=2).answer()
        assert not served.server._machine.sessions


@pytest.mark.parametrize(
    "payload", [b"", b"\xc1", b"\x94\xc4", bytes(100), b"\xdd\xff\xff\xff\xff", "é".encode("latin-1")]
)
def test_malformed_payloads_are_refused_and_others_served(served, payload):
    keys = edgebus.load_keys(served.directory / "device")
    with served.serving() as endpoint, served.device(endpoint) as device, edgebus.Node(keys=keys) as node:
        link = node.connect(endpoint, server_key=edgebus.read_public_key(served.directory / "server" / "node.key"))
        for service in ("sled.open", "sled.verify", "sled.close"):
            with pytest.raises(edgebus.Refused) as refused:
                link.request(service, payload)
            assert refused.value.code == "invalid"
        assert device.generate(PROMPT, max_tokens=4).answer().tokens == right(served, Sampling())[:4]


def test_failing_forward_is_refused_and_the_next_round_works(served):
    class Failing(ToyTarget):
        fail = False

        def verify(self, chunks, rounds):
            if self.fail:
                raise RuntimeError("out of memory")
            return super().verify(chunks, rounds)

    target = Failing()
    with served.serving(target=target) as endpoint, served.device(endpoint) as device:
        target.fail = True
        with pytest.raises(edgebus.Refused, match="try again"):
            device.generate(PROMPT, max_tokens=4).answer()
        target.fail = False
        assert device.generate(PROMPT, max_tokens=4).answer().tokens == right(served, Sampling())[:4]


def test_bad_parameters_are_refused_before_anything_is_sent(served):
    with served.serving() as endpoint, served.device(endpoint) as device:
        for bad in ({"max_tokens": 0}, {"max_tokens": -5}):
            with pytest.raises(ParameterError):
                device.generate(PROMPT, **bad)
        with pytest.raises(ParameterError, match="empty"):
            device.generate("")
    with pytest.raises(ParameterError, match="insecure"):
        type(device)("tcp://127.0.0.1:1")
    assert served.target.steps == []


def test_drafter_of_another_vocabulary_is_refused(served):
    pytest.importorskip("torch")
    from sled.drafters import open_drafter

    other = Described("other", "float32", 49152, bytes(16), 100, 4, [0])
    with pytest.raises(VocabularyMismatch, match="use a drafter made for this target"):
        open_drafter("smollm2-12m", other)


@pytest.mark.net
def test_a_conversation_goes_through_the_template(served):
    with served.serving() as endpoint, served.device(endpoint) as device:
        asked = [{"role": "user", "content": "hi"}, sled.Message("assistant", "ho")]
        answer = device.chat(asked, max_tokens=5).answer()
        assert answer.prompt_tokens == served.target.codec.encode_chat([sled.Message("user", "hi"), asked[1]])
        assert answer.tokens == served.target.plain_answer(answer.prompt_tokens, sled.Sampling(), 5)
        for bad in ([], [{"role": "user"}], [{"role": 3, "content": "x"}], [{"role": "user", "content": "\ud800"}]):
            with pytest.raises(sled.ParameterError):
                device.chat(bad)


def test_window_of_no_drafts_is_a_stream(served):
    with served.serving() as endpoint, served.device(endpoint) as device:
        stream = device.generate(PROMPT, max_tokens=20, window=Window(0))
        kinds = {type(event).__name__ for event in stream.events()}
        assert "RoundSent" not in kinds
        assert stream.answer().tokens == served.target.plain_answer(stream.answer().prompt_tokens, Sampling(), 20)
