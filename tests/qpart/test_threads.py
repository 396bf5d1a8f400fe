"""Threads of a forward: more than one only where they bring something."""

import time
from types import SimpleNamespace

import pytest
import torch

from qpart.executors.with_torch import TorchExecutor
from qpart.run import models
from qpart.run.threads import threads_of, worthwhile_threads
from tests.qpart import small


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [({1: 0.004, 4: 0.001}, 4), ({1: 0.0022, 4: 0.002}, 1), ({1: 0.001, 4: 0.02}, 1)],
    ids=["faster by four", "faster by a tenth", "slower"],
)
def test_more_threads_only_where_they_gain(seconds, expected):
    before, asked = torch.get_num_threads(), []

    def forward():
        asked.append(torch.get_num_threads())
        time.sleep(seconds[asked[-1]])

    assert worthwhile_threads(forward, 4) == expected
    assert set(asked) == {1, 4}
    assert torch.get_num_threads() == before


def test_one_core_is_not_measured():
    assert worthwhile_threads(lambda: pytest.fail("was run"), 1) == 1


@pytest.mark.parametrize(("given", "expected"), [(2, 2), (0, 7)], ids=["given", "chosen"])
def test_forwards_of_a_served_model_take_the_threads_given_or_chosen(given, expected, monkeypatch):
    artefact = small.artefact()  # calibrated at most once, with an executor that is none of ours
    monkeypatch.setattr("qpart.run.threads.worthwhile_threads", lambda forward, most: forward() and 7)
    made = []
    monkeypatch.setattr(
        "qpart.executors.with_torch.TorchExecutor", lambda *args: made.append(TorchExecutor(*args)) or made[-1]
    )
    before = torch.get_num_threads()
    models.make_served(artefact, macs_per_s=1e9, threads=given)
    torch.set_num_threads(before)
    taken = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    made[0].run_arrays({0: artefact.float_inputs()[:1]}, 0, 1, [1])
    assert taken == [expected]


def test_each_served_model_has_all_threads_to_choose_from(monkeypatch):
    """What a model that takes one thread is loaded with does not count for the next one."""
    asked = []
    monkeypatch.setattr("qpart.run.threads.worthwhile_threads", lambda forward, most: asked.append(most) or 1)
    with threads_of(3):
        for _ in range(2):
            models.make_served(small.artefact())
        assert torch.get_num_threads() == 3
    assert asked == [3, 3]


@pytest.mark.parametrize(("given", "expected"), [(2, 2), (0, 3)], ids=["given", "chosen"])
def test_plans_run_with_the_threads_given_or_all_whoever_computed_before(given, expected, monkeypatch):
    """A thread takes over what was last set anywhere, which depends on who came first."""
    monkeypatch.setattr("qpart.run.threads.worthwhile_threads", lambda forward, most: 1)
    seen, real = [], TorchExecutor.run
    artefact = small.artefact()
    with threads_of(3):
        served, _ = models.make_served(artefact, macs_per_s=1e9, threads=given)
        monkeypatch.setattr(TorchExecutor, "run", lambda *args: seen.append(torch.get_num_threads()) or real(*args))
        torch.set_num_threads(5)
        served._verifier._measure(SimpleNamespace(cut=1, weight_bits=(4,), live_bits=(4,)))
        assert torch.get_num_threads() == 5
    assert set(seen) == {expected}
