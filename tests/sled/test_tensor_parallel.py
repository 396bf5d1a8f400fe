"""A target divided over two processes (gloo), against the same model in one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from sled.errors import ParameterError
from sled.targets.causal_lm import CausalLMTarget
from tests.sled import two_ranks
from tests.sled.tiny_models import FakeCodec, save_with_tokenizer, tiny

pytestmark = [pytest.mark.model, pytest.mark.net]


def test_two_ranks_compute_what_one_process_does(tmp_path):
    """Logits within rounding, the same greedy answer; a clean end; and a rank that fails ends the others."""
    save_with_tokenizer(tiny("llama"), tmp_path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    root = Path(__file__).parents[2]
    ran = subprocess.run(
        [sys.executable, "-m", "tests.sled.two_ranks", str(tmp_path)],
        cwd=root,
        env={**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    lines = [line for line in ran.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, ran.stdout + ran.stderr
    found = json.loads(lines[0].removeprefix("RESULT "))
    one = CausalLMTarget(tiny("llama"), FakeCodec(), name="one", kv_bytes=1 << 20)
    chunks = [
        two_ranks.Chunk(b"a", tuple(two_ranks.TEXT), 0, 4, (7, 3)),
        two_ranks.Chunk(b"b", tuple(two_ranks.TEXT[:5]), 0, 2, (5,)),
    ]
    right = one.logits(chunks).numpy()
    np.testing.assert_allclose(found["logits"], right, atol=1e-5 * float(np.abs(right).max()))
    assert found["answer"] == two_ranks.answer(one, two_ranks.TEXT[:7], 12)
    assert found["afterwards"] == found["answer"][:2]
    assert found["target_id"] != one.described.target_id.hex()  # last bits differ: neither takes over from the other
    assert found["kv_heads"] == 1  # of 2
    assert found["num_pages"] == (1 << 18) // 2048  # of the rank that has the least
    assert "give it 3" in found["refused"]
    assert found["lost"].startswith("RanksLost: a rank failed")
    assert "gone" in found["lost_again"]
    assert found["lost_after_s"] < 2 * two_ranks.TIMEOUT_S
    assert found["follower"] == 3
    assert found["untried"] == []
    for short in found["short"]:  # of one rank and of the other
        assert short["told"] == [[1, 1], [2, 2], [4, 4], [8, 8], [16, 16], [5, 1], [10, 2]]
        assert short["target_id"] == found["target_id"]  # but from one divided likewise
        assert short["answer"] == found["answer"]
        assert [length for length, _ in short["refused"]] == [20, 18]
        assert all("no memory" in why for _, why in short["refused"])
        assert short["afterwards"] == found["answer"][:2]


def test_end_of_a_target_whose_ranks_are_gone_is_no_error(monkeypatch):
    import threading

    from sled.targets.tensor_parallel import TensorParallelTarget

    target = object.__new__(TensorParallelTarget)
    target._closing, target._telling, target._leads, target._lost = threading.Event(), threading.Lock(), True, False
    target._pulse = threading.Thread(target=target._closing.wait)
    target._pulse.start()
    monkeypatch.setattr(target, "_tell", lambda _: (_ for _ in ()).throw(RuntimeError("Connection closed by peer")))
    target.close()
    assert not target._pulse.is_alive()


def test_followers_stay_until_the_first_rank_has_drained(monkeypatch):
    """Who ends a server signals all its processes, as torchrun does."""
    import signal
    from types import SimpleNamespace

    from sled.cli import loading

    def computing():
        assert [signal.getsignal(number) for number in numbers] == [signal.SIG_IGN] * 2

    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    monkeypatch.setattr(loading, "_target", lambda _: SimpleNamespace(follow=computing))
    try:
        loading.follow(None)
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def test_without_torchrun_it_says_what_to_do(monkeypatch):
    from sled.targets.tensor_parallel import join_ranks

    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ParameterError, match="torchrun"):
        join_ranks()


def test_idle_leader_says_that_it_is_there_until_it_closes():
    """Else the others would take its silence for a failure."""
    import threading

    from sled.targets.tensor_parallel import TensorParallelTarget

    target = TensorParallelTarget.__new__(TensorParallelTarget)
    target._lost, target._leads = False, True
    target._telling, target._closing, thrice = threading.Lock(), threading.Event(), threading.Semaphore(0)
    told = []

    def tell(kind):
        told.append(kind)
        thrice.release()

    target._tell = tell
    target._pulse = threading.Thread(target=target._keep_alive, args=(0.001,))
    target._pulse.start()
    assert all(thrice.acquire(timeout=10) for _ in range(3))
    target.close()
    target.close()
    assert not target._pulse.is_alive()
    assert set(told[:-1]) == {0}
    assert told.count(2) == 1
