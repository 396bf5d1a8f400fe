"""Threads of a forward: more than one only where they bring something."""

import time

import pytest
import torch

from qpart.executors.with_torch import TorchExecutor
from qpart.run import models
from qpart.run.threads import worthwhile_threads
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
    monkeypatch.setattr("qpart.run.threads.worthwhile_threads", lambda forward, most: forward() and 7)
    made = []
    monkeypatch.setattr(
        "qpart.executors.with_torch.TorchExecutor", lambda *args: made.append(TorchExecutor(*args)) or made[-1]
    )
    artefact = small.artefact()
    before = torch.get_num_threads()
    models.make_served(artefact, macs_per_s=1e9, threads=given)
    torch.set_num_threads(before)
    taken = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    made[0].run_arrays({0: artefact.float_inputs()[:1]}, 0, 1, [1])
    assert taken == [expected]
