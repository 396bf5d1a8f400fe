"""The serving benchmark counts what it says: its window, its percentiles, its drafts and its ratios."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys

import gguf
import numpy as np
import pytest
from edgekernels.gguf import GgufFile
from hypothesis import given
from hypothesis import strategies as st

from bench import losses, record
from bench.macro.serving import cells, float_gguf, report
from bench.macro.serving.loop import drive
from bench.macro.serving.worker import Process, WorkerFailed
from sled.swarm import account
from sled.swarm.account import Arrival, Asked, Record
from sled.swarm.replay import Replay


def test_throughput_is_counted_from_the_last_session_s_first_token_to_the_end():
    # session 0 runs from 1 s on, session 1 from 3 s on; in (3, 5] there are 1 + 2 + 4 tokens
    arrivals = [Arrival(0, 0, 1.0, 1), Arrival(0, 0, 2.0, 3), Arrival(1, 0, 3.0, 1), Arrival(0, 0, 3.5, 1)]
    arrivals += [Arrival(1, 0, 4.0, 2), Arrival(0, 1, 5.0, 4), Arrival(1, 0, 5.1, 9)]
    turn = Record(2, [Asked(0, 0, 0.0), Asked(1, 0, 0.0), Asked(0, 1, 4.5)], arrivals, 5.0, {"acceptance": 0.5})
    found = account.summarise(turn)
    assert (found["tokens"], found["tokens_per_s"], found["window_s"]) == (7, 3.5, 2.0)
    assert (found["first_token_p50_s"], found["first_token_of_burst_p99_s"]) == (0.5, 3.0)
    assert (found["prompts_in_window"], found["acceptance"]) == (1, 0.5)


@pytest.mark.parametrize("arrivals", [[Arrival(0, 0, 1.0, 1)], [Arrival(0, 0, 1.0, 1), Arrival(1, 0, 9.0, 1)]])
def test_a_turn_in_which_not_all_sessions_ran_counts_for_nothing(arrivals):
    with pytest.raises(ValueError, match="had a token"):
        account.summarise(Record(2, [Asked(0, 0, 0.0), Asked(1, 0, 0.0)], arrivals, 9.0))


def test_a_prompt_without_a_token_waits_until_the_end():
    turn = Record(1, [Asked(0, 0, 0.0), Asked(0, 1, 4.0)], [Arrival(0, 0, 1.0, 1)], 10.0)
    assert account.first_token_s(turn, 1.0, 10.0) == [6.0]


def test_rate_on_time_is_what_all_but_one_in_twenty_tokens_keep_to():
    # one token every half second: every token n comes n / 2 s after the first, so 2 tokens per second can be promised
    steady = [Arrival(0, 0, 1 + n / 2, 1) for n in range(21)]
    assert account.rate_on_time(Record(1, [], steady, 20.0), 0.0, 20.0) == 2.0
    # the last one of the 20 that follow the first comes late and may
    late = [*steady[:-1], Arrival(0, 0, 19.0, 1)]
    assert account.rate_on_time(Record(1, [], late, 20.0), 0.0, 20.0) == 2.0
    # two may not: tokens 19 and 20 come after 16 s, and at 20 / 16 a second the last one is on time
    later = [*steady[:-2], Arrival(0, 0, 17.0, 2)]
    assert account.rate_on_time(Record(1, [], later, 20.0), 0.0, 20.0) == 20 / 16
    assert account.rate_on_time(Record(1, [], steady[:1], 20.0), 0.0, 20.0) == 0.0


@given(st.lists(st.tuples(st.floats(0.01, 3.0), st.integers(1, 5)), min_size=1, max_size=30))
def test_the_promised_rate_is_kept_by_95_percent(steps):
    at, arrivals = 1.0, [Arrival(0, 0, 1.0, 1)]
    for gap, tokens in steps:
        at += gap
        arrivals.append(Arrival(0, 0, at, tokens))
    rate = account.rate_on_time(Record(1, [], arrivals, at), 0.0, at)
    comes = [arrival.at_s - 1.0 for arrival in arrivals[1:] for _ in range(arrival.tokens)]
    on_time = sum(after <= number / rate * (1 + 1e-9) for number, after in enumerate(comes, 1))
    assert on_time >= 0.95 * len(comes)


def test_replayed_drafts_are_right_as_often_as_told_wherever_a_round_begins():
    answer = list(range(100, 4100))
    replay = Replay({3: answer}, acceptance=0.724, vocab_size=5000, seed=6)
    drafts = replay.draft(3, 0, 4000)
    right = [ours == theirs for ours, theirs in zip(drafts, answer, strict=True)]
    assert abs(np.mean(right) - 0.724) < 0.03
    # errors are independent of each other: two in a row are right with the square
    assert abs(np.mean([a and b for a, b in itertools.pairwise(right)]) - 0.724**2) < 0.04
    assert replay.draft(3, 17, 4) == drafts[17:21]
    assert replay.draft(3, 3998, 4) == drafts[3998:]
    assert replay.draft(3, 5, 0) == replay.draft(3, 0, -1) == replay.draft(4, 0, 4) == []


def test_replayed_errors_stay_in_the_vocabulary():
    assert Replay({0: [6, 2]}, acceptance=0.0, vocab_size=7, seed=1).draft(0, 0, 2) == [0, 3]
    assert Replay({0: [6, 2]}, acceptance=1.0, vocab_size=7, seed=1).draft(0, 0, 2) == [6, 2]


@pytest.mark.parametrize("sessions", list(cells.TURNS))
def test_first_answers_end_at_different_times_and_no_prompt_comes_twice(sessions):
    asked = [cells.asks(session, sessions, cells.NUM_PROMPTS) for session in range(sessions)]
    first = [next(session) for session in asked]
    second = [next(session) for session in asked]
    assert len({prompt for prompt, _ in first + second}) == 2 * sessions
    lengths = [wanted for _, wanted in first]
    assert (len(set(lengths)), max(lengths), min(lengths)) == (sessions, cells.MAX_TOKENS, cells.MAX_TOKENS // sessions)
    assert {wanted for _, wanted in second} == {cells.MAX_TOKENS}
    assert len(set(cells.prompts())) == cells.NUM_PROMPTS


def test_the_loop_asks_again_and_ends_what_still_runs():
    ended = []

    async def answer(session, prompt, wanted, arrived):
        try:
            for _ in range(2):
                await asyncio.sleep(0)
                arrived(3)
            if prompt >= 4:
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append(session)
            raise

    turn = asyncio.run(drive(answer, sessions=2, window_s=0.01, limit_s=5.0, num_prompts=9))
    assert sorted(ended) == [0, 1]
    assert [(asked.session, asked.answer) for asked in turn.asked] == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2)]
    assert sum(arrival.tokens for arrival in turn.arrivals) == 36


def test_an_answer_that_fails_ends_the_turn():
    async def answer(session, prompt, wanted, arrived):
        await asyncio.sleep(0)
        raise RuntimeError("the server is gone")

    with pytest.raises(RuntimeError, match="the server is gone"):
        asyncio.run(drive(answer, sessions=3, window_s=1.0, limit_s=5.0, num_prompts=9))


def test_a_turn_in_which_a_session_gets_nothing_ends_at_its_limit():
    async def answer(session, prompt, wanted, arrived):
        await asyncio.Event().wait()

    turn = asyncio.run(drive(answer, sessions=1, window_s=0.0, limit_s=0.02, num_prompts=9))
    assert 0.02 <= turn.end_s < 5


def test_a_worker_s_error_and_its_end_are_told_by_name():
    say = "import sys; sys.stdin.readline(); print('{\"error\": \"no model\"}', flush=True); sys.exit('out of luck')"
    with Process("peer", [sys.executable, "-S", "-c", say]) as process:
        with pytest.raises(WorkerFailed, match="peer: no model"):
            process.ask(20.0, do="turn")
        with pytest.raises(WorkerFailed, match="peer has ended: out of luck"):
            process.line(20.0)


def turn_of(system, sessions, rate, **more):
    memory = {"peak_mb": 100}
    return {"system": system, "sessions": sessions, "tokens_per_s": rate, "server_memory": memory, **more}


def test_ratios_are_of_turns_in_the_same_round_and_figures_have_their_origin():
    lines = [turn_of("sled-w4", 16, rate) for rate in (30.0, 300.0, 33.0)]
    lines += [turn_of("llamacpp", 16, rate) for rate in (10.0, 100.0, 30.0)]
    lines += [turn_of("transformers", 16, 15.0), {"system": "llamacpp-f32", "sessions": 16, "error": "no binary"}]
    assert report.ratios(report.gather(lines)) == {"sled.server.cpu_ratio_llamacpp_16": 3.0}
    found = report.figures(report.gather(lines), {"cpu": "x", "cores": 2, "commit": "abc"})
    assert found["sled.server.cpu_ratio_llamacpp_16"]["peer"].startswith("llama.cpp's server, Q4_1")
    assert "window 4" in found["sled.server.cpu_ratio_llamacpp_16"]["unit"]
    assert found["sled.server.cpu_tokens_per_s_16"]["value"] == 33.0
    rows = report.results(lines)["rows"]
    assert rows["llamacpp-f32"]["16"] == {"error": "no binary", "turns": 0}
    assert rows["sled-w4"]["16"]["tokens_per_s_of_turns"] == [30.0, 300.0, 33.0]
    assert "| sled, window 4 | - | - | 33 | - |" in report.table(rows)


def test_disturbed_turns_count_only_where_there_are_no_others():
    lines = [turn_of("sled-w4", 4, 90.0), turn_of("sled-w4", 4, 10.0, disturbed=True)]
    lines += [turn_of("llamacpp", 4, 45.0), turn_of("llamacpp", 4, 40.0)]
    assert report.ratios(report.gather(lines)) == {"sled.server.cpu_ratio_llamacpp_4": 2.0}
    found = report.row(lines[:2])
    assert (found["turns"], found["disturbed"], found["tokens_per_s"]) == (2, 1, 90.0)
    assert report.row(lines[1:2])["tokens_per_s"] == 10.0


def test_each_ratio_names_its_own_peer():
    lines = [turn_of(system, 1, 10.0) for system in cells.SYSTEMS]
    found = report.figures(report.gather(lines), {"cpu": "x", "cores": 2, "commit": "abc"})
    assert "F32" in found["sled.server.cpu_ratio_llamacpp_f32_1"]["peer"]
    assert "transformers" in found["sled.server.cpu_w0_ratio_hf_1"]["peer"]
    assert "window 0" in found["sled.server.cpu_w0_ratio_llamacpp_f32_1"]["unit"]
    assert "the server allows" in found["sled.server.cpu_auto_ratio_llamacpp_1"]["unit"]
    assert found["sled.server.cpu_auto_tokens_per_s_1"]["value"] == 10.0


def test_least_ratio_is_of_all_peers_and_sessions_or_not_there():
    lines = [turn_of(system, sessions, 20.0) for system in cells.SYSTEMS for sessions in cells.TURNS]
    lines[-1]["tokens_per_s"] = 30.0  # transformers at the most sessions
    stamped = {"cpu": "x", "cores": 2, "commit": "abc"}
    assert report.figures(report.gather(lines), stamped)["sled.server.cpu_auto_over_best_min"]["value"] == 0.667
    assert "sled.server.cpu_auto_over_best_min" not in report.figures(report.gather(lines[:-1]), stamped)


def test_servers_that_are_faster_are_listed_as_losses():
    rows = {
        "sled-w4": {"4": {"tokens_per_s": 50.0}},
        "sled-w0": {"4": {"tokens_per_s": 40.0}},
        "llamacpp": {"4": {"tokens_per_s": 100.0}},
        "transformers": {"4": {"tokens_per_s": 45.0}},
    }
    found = list(losses.serving_losses({"rows": rows, "systems": {"llamacpp": "llama.cpp server, Q4_1"}}))
    assert found == [
        ("serving 4 sessions on the CPU", "50.0 tokens per second against 100.0 of llama.cpp server, Q4_1")
    ]


def test_weights_in_float32_are_those_of_the_file(tmp_path):
    rng = np.random.default_rng(5)
    writer = gguf.GGUFWriter(tmp_path / "q.gguf", "llama")
    writer.add_token_list(["a", "bc"])
    writer.add_uint32("llama.block_count", 1)
    weight = rng.normal(size=(4, 64)).astype(np.float32)
    quantised = gguf.quants.quantize(weight, gguf.GGMLQuantizationType.Q4_1)
    writer.add_tensor("w", quantised, raw_dtype=gguf.GGMLQuantizationType.Q4_1)
    writer.add_tensor("norm", weight[0])
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    out = float_gguf.write_float32(tmp_path / "q.gguf", tmp_path / "f.gguf")
    with GgufFile(tmp_path / "q.gguf") as source, GgufFile(out) as file:
        before, after = dict(source.read_all()), dict(file.read_all())
        assert file.tensors["w"].num_bytes == 4 * weight.size
        assert file.metadata["tokenizer.ggml.tokens"] == ["a", "bc"]
        assert file.metadata["llama.block_count"] == 1
    assert {name: value.shape for name, value in after.items()} == {"w": (4, 64), "norm": (64,)}
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert 0 < np.abs(after["w"] - weight).max() < 0.3


def test_committed_results_have_a_row_for_every_system():
    path = record.RESULTS / "serving.json"
    if path.is_file():
        assert set(json.loads(path.read_text())["rows"]) >= {"sled-w0", "sled-w4", *report.PEERS}
