"""A fleet of paced devices: exact answers, boards' speeds, what is counted, ends in time."""

from __future__ import annotations

import asyncio
import io
import json
import math
import signal
import subprocess
import sys
import threading
import time

import pytest
from rich.console import Console

import edgebus
from edgebus.payloads import decode, encode
from sled.cli.swarm import render
from sled.errors import ParameterError
from sled.messages import OPEN, Open, Opened, Verdict, Verify
from sled.server import ServerLimits
from sled.swarm.account import Arrival, Asked, Record
from sled.swarm.drafts import ReplayedDrafts, SharedDrafts
from sled.swarm.fleet import Fleet, Plan
from sled.swarm.guest import Guest, Question
from sled.swarm.profiles import Profile, chosen, dealt, read_profiles
from sled.swarm.prompts import questions
from sled.swarm.replay import Replay
from sled.swarm.report import Tried, summarise
from sled.testing import ToyDrafter, ToyTarget
from sled.types import Sampling

QUICK = Profile(name="quick", draft_tokens_per_s=1e5, acceptance=(0.7,))
PROMPTS = [[5 + n, 6, 7 + n] for n in range(6)]


def run(coroutine):
    return asyncio.run(coroutine)


async def fleet_of(served, endpoint, links=2, prompts=PROMPTS):
    key = edgebus.read_public_key(served.directory / "server" / "node.key")
    keys = [served.directory / "device"]
    return await Fleet.connect(endpoint, server_key=key, keys=keys, num_links=links, prompts=prompts)


def plan(**more):
    options = {"devices": 4, "profiles": (QUICK,), "seconds": 30.0, "answers": 12, "max_tokens": 20, "timeout_s": 10.0}
    return Plan(**{**options, **more})


# -- profiles


def test_every_number_of_a_profile_has_its_source():
    for name, profile in read_profiles().items():
        assert profile.name == name
        numbers = {"draft_tokens_per_s", "acceptance", "delay_s", "think_s"}
        assert set(profile.source) == numbers


def test_profiles_are_chosen_by_name_and_from_files(tmp_path):
    own = tmp_path / "own.toml"
    own.write_text("[slow]\ndraft_tokens_per_s = 2\nacceptance = [0.9, 0.5]\n")
    assert [each.name for each in chosen("rpi5, slow", own)] == ["rpi5", "slow"]
    assert [each.name for each in dealt(chosen("rpi5,laptop"), 3)] == ["rpi5", "laptop", "rpi5"]
    with pytest.raises(ParameterError, match="do you mean rpi5"):
        chosen("rpi6")
    own.write_text("a = " + "[" * 5000)
    with pytest.raises(ParameterError, match="cannot take profiles"):
        chosen("slow", own)
    with pytest.raises(ParameterError, match="give some of"):
        chosen(" , ")
    for bad in ("[slow]\nacceptance = [0.9]", "[slow]\ndraft_tokens_per_s = 2\nacceptance = [1.5]", "x = \xff", "["):
        own.write_text(bad, encoding="latin-1")
        with pytest.raises(ParameterError, match="cannot take profiles"):
            chosen("slow", own)


def test_plans_out_of_range_are_refused():
    for bad in ({"devices": 0}, {"devices": 257}, {"seconds": 0.0}, {"window": 65}, {"rate": 0.0}, {"max_tokens": 1}):
        with pytest.raises(ParameterError, match=next(iter(bad))):
            plan(**bad)


def test_built_in_questions_all_differ():
    assert len(set(questions(200))) == 200


# -- drafts


def test_replayed_drafts_err_by_the_position_in_the_round():
    replay = Replay({0: list(range(2000))}, acceptance=[1.0, 0.5, 0.0], vocab_size=5000, seed=(1, 2))
    right = [0, 0, 0, 0]
    for done in range(0, 2000, 4):
        for at, token in enumerate(replay.draft(0, done, 4)):
            right[at] += token == done + at
    assert right[0] == 500
    assert abs(right[1] - 250) < 60
    assert right[2:] == [0, 0]
    assert replay.draft(0, 1999, 4) == [1999]


# -- a run


def test_every_answer_of_a_fleet_is_the_targets_and_drafts_are_accepted_as_often_as_told(served):
    async def main(endpoint):
        async with await fleet_of(served, endpoint) as fleet:
            assert await fleet.learn(plan(), 20.0) == len(PROMPTS)
            report = await fleet.run(plan())
            return fleet.known, report

    with served.serving() as endpoint:
        known, report = run(main(endpoint))
    assert known == {n: served.target.plain_answer(prompt, Sampling(), 20) for n, prompt in enumerate(PROMPTS)}
    assert report.answers >= 12
    assert report.different == 0
    assert report.bytes_per_token > 0
    assert report.all.drafted > report.all.accepted > 0
    assert report.all.wasted == report.all.drafted - report.all.accepted
    assert report.profiles["quick"] == report.all


def test_answers_that_the_end_of_a_run_breaks_off_leave_no_session(served):
    async def main(endpoint):
        async with await fleet_of(served, endpoint) as fleet:
            fleet.known[0] = served.target.plain_answer(PROMPTS[0], Sampling(), 20)
            await fleet.run(plan(devices=6, seconds=0.3))
        return list(served.server._machine.sessions)

    class Busy(ToyTarget):
        def verify(self, chunks, rounds):
            threading.Event().wait(0.1)  # requests that come meanwhile wait
            return super().verify(chunks, rounds)

    with served.serving(target=Busy()) as endpoint:
        assert asyncio.run(main(endpoint)) == []


def test_a_fleet_without_drafts_has_the_server_decode(served):
    async def main(endpoint):
        async with await fleet_of(served, endpoint) as fleet:
            await fleet.learn(plan(), 20.0)
            return await fleet.run(plan(window=0))

    with served.serving() as endpoint:
        report = run(main(endpoint))
    assert (report.different, report.all.rounds) == (0, 0)
    assert report.all.streamed > 0


def test_an_answer_that_is_not_as_the_first_is_counted(served):
    async def main(endpoint):
        async with await fleet_of(served, endpoint) as fleet:
            await fleet.learn(plan(), 20.0)
            fleet.known[0] = [*fleet.known[0][:-1], 3]
            return await fleet.run(plan(devices=1, answers=6))

    with served.serving() as endpoint:
        assert run(main(endpoint)).different == 1


def test_one_real_drafter_serves_all_devices(served):
    async def main(endpoint):
        async with await fleet_of(served, endpoint) as fleet:
            return await fleet.run(plan(), drafter=ToyDrafter(served.target, error=0.0))

    with served.serving() as endpoint:
        report = run(main(endpoint))
    assert report.different == 0
    assert report.all.accepted == report.all.drafted > 0


def test_questions_that_come_by_chance_wait_where_no_device_is_free(served):
    async def main(endpoint):
        async with await fleet_of(served, endpoint) as fleet:
            await fleet.learn(plan(), 20.0)
            return await fleet.run(plan(devices=2, arrivals=200.0, answers=8))

    with served.serving() as endpoint:
        report = run(main(endpoint))
    assert report.answers >= 8
    assert report.different == 0


def test_a_server_that_is_full_is_asked_again(served):
    async def main(endpoint):
        async with await fleet_of(served, endpoint) as fleet:
            fleet.known[0] = served.target.plain_answer(PROMPTS[0], Sampling(), 20)
            return await fleet.run(plan(devices=3, answers=4))

    with served.serving(limits=ServerLimits(max_sessions=1)) as endpoint:
        report = run(main(endpoint))
    assert report.answers >= 4
    assert report.all.busy > 0


def test_nothing_known_and_nothing_to_ask_are_told(served):
    async def main(endpoint):
        with pytest.raises(ParameterError, match="nothing to ask"):
            await fleet_of(served, endpoint, prompts=[])
        async with await fleet_of(served, endpoint) as fleet:
            with pytest.raises(ParameterError, match="no answer is known"):
                await fleet.run(plan())

    with served.serving() as endpoint:
        run(main(endpoint))


class Clockless:
    """A link whose server takes 0.2 s for a round; time is what passes here and in sleeps."""

    def __init__(self, target, now):
        self.target, self.now = target, now
        self.text = []

    async def request(self, service, payload, timeout_s):
        class Reply:
            pass

        reply = Reply()
        if service == OPEN:
            opened = decode(Open, payload)
            self.text = list(opened.prompt)
            reply.payload = encode(Opened(self.text, len(self.text), 8))
            return reply
        self.now[0] += 0.2
        draft = decode(Verify, payload).draft
        base, accepted, tokens = len(self.text), 0, []
        for number in range(len(draft) + 1):
            tokens += self.target.plain_answer([*self.text, *tokens], Sampling(), 1)
            if number == len(draft) or tokens[-1] != draft[number]:
                break
            accepted += 1
        self.text += tokens
        reply.payload = encode(Verdict(base, tokens, accepted, "", 8, 1))
        return reply

    async def send_request(self, service, payload, timeout_s):
        return None


@pytest.mark.parametrize(("acceptance", "num_drafted", "drafting_s"), [(1.0, 24, 0.65), (0.0, 110, 11.0)])
def test_a_board_takes_its_time_for_every_draft_and_every_way(monkeypatch, acceptance, num_drafted, drafting_s):
    """Window 4 at 10 drafts a second, 0.25 s each way, 0.2 s at the server, 30 tokens.

    All accepted: 6 rounds of 4 drafts and a bonus token. Behind the first, the 0.45 s until the verdict are 4.5 drafts
    ahead, the hoped for bonus token first, so that each round waits for 0.05 s. None accepted: 30 rounds of a token
    each, and what was drafted ahead is in vain.
    """
    target, now = ToyTarget(), [0.0]

    async def sleep(seconds):
        now[0] += seconds

    monkeypatch.setattr("sled.swarm.guest._sleep", sleep)
    monkeypatch.setattr("sled.swarm.guest._clock", lambda: now[0])
    profile = Profile(name="slow", draft_tokens_per_s=10.0, acceptance=(acceptance,), delay_s=0.25)
    answer = target.plain_answer([5, 6, 7], Sampling(), 30)
    drafts = ReplayedDrafts({0: answer}, profile, vocab_size=50, seed=(0,))
    tried = Tried()
    guest = Guest(Clockless(target, now), profile, drafts, window=4, timeout_s=1.0, tried=tried)
    told = run(guest.answer(Question(0, [5, 6, 7], Sampling(), 30, 1.0), lambda tokens: None))
    assert told == answer
    assert tried.drafted == num_drafted
    assert math.isclose(now[0] - (2 * 0.25 + 0.2) * tried.rounds, drafting_s, abs_tol=1e-6)
    assert (tried.dropped > 50) == (acceptance == 0.0)


def test_shared_drafts_start_where_each_answer_begins():
    target = ToyTarget()
    shared = SharedDrafts(ToyDrafter(target, error=0.0))
    question = Question(0, [5, 6, 7], Sampling(), 10, 1.0)
    answer = target.plain_answer([5, 6, 7], Sampling(), 6)
    assert run(shared.draft(question, [5, 6, 7, *answer[:2]], 2, 4)) == answer[2:6]


# -- figures


def test_the_report_counts_sessions_that_got_the_promised_rate():
    # session 0: 10 tokens/s; session 1: 2 tokens/s; both have their first token at 1 s
    arrivals = [Arrival(0, 0, 1 + n / 10, 1) for n in range(41)] + [Arrival(1, 0, 1 + n / 2, 1) for n in range(9)]
    record = Record(2, [Asked(0, 0, 0.5), Asked(1, 0, 0.0)], arrivals, 5.0)
    tried = {"a": Tried(rounds=4, drafted=8, accepted=6, batches=6), "b": Tried(busy=1)}
    report = summarise(
        record, promised=5.0, profiles=["a", "b"], tried=tried, num_bytes=500, answers=2, different=1, waiting=3
    )
    assert (report.seconds, report.bytes_per_token, report.answers, report.different) == (4.0, 10.0, 2, 1)
    assert (report.all.served, report.profiles["a"].served, report.profiles["b"].served) == (1, 1, 0)
    assert (report.all.tokens, report.all.tokens_per_s) == (48, 12.0)
    assert report.all.on_time == round(40 / 48, 4)
    assert report.profiles["b"].rate_on_time == 2.0
    assert (report.all.wasted, report.all.batch, report.all.busy) == (2, 1.5, 1)
    assert (report.all.first_token_p50_s, report.all.first_token_p99_s) == (0.5, 1.0)
    assert report.waiting == 3


# -- the program


def command(served, endpoint, *more):
    where = ["--server", endpoint, "--server-key", str(served.directory / "server" / "node.key")]
    keys = ["--keys", str(served.directory / "device"), "--devices", "3", "--think", "0", "--num-prompts", "3"]
    keys += ["--profile", "laptop,sensor"]
    return [sys.executable, "-m", "sled.cli", "swarm", *where, *keys, *more]


@pytest.mark.net
def test_the_program_ends_on_ctrl_c_with_what_it_has(served):
    where = ["--server-key", str(served.directory / "server" / "node.key"), "--keys", str(served.directory / "device")]
    options = ["--devices", "3", "--think", "0", "--num-prompts", "3", "--max-tokens", "8", "--seconds", "60", "--json"]
    with served.serving() as endpoint:
        command = [sys.executable, "-m", "sled.cli", "swarm", "--server", endpoint, "--profile", "laptop,sensor"]
        with subprocess.Popen(
            [*command, *where, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            until = time.monotonic() + 60
            while len(served.target.steps) < 60 and time.monotonic() < until:
                pass
            process.send_signal(signal.SIGINT)
            out, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")
    report = json.loads(out)
    assert report["different"] == 0
    assert report["all"]["devices"] == 3
    assert set(report["profiles"]) == {"laptop", "sensor"}


def test_a_run_reads_well_on_a_terminal():
    record = Record(1, [Asked(0, 0, 0.0)], [Arrival(0, 0, 1 + n / 10, 1) for n in range(9)], 2.0)
    tried = {"rpi5\x1b": Tried(rounds=4, drafted=8, accepted=6)}
    report = summarise(
        record, promised=5.0, profiles=list(tried), tried=tried, num_bytes=90, answers=2, different=1, waiting=3
    )
    console = Console(file=io.StringIO(), width=120)
    console.print(render(report, ToyTarget().described))
    text = console.file.getvalue()
    assert "2 answers, 1 of them not as the first, 10 bytes a token, 3 questions wait" in text
    assert "\x1b" not in text
    assert "75%" in text
