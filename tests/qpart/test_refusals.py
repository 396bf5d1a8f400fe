"""Refusals: the constraint that binds, and a remedy that helps."""

from __future__ import annotations

import itertools
import math
import pickle
import random

import msgspec
import numpy as np
import pytest

from qpart.errors import Infeasible
from qpart.limits import BELOW_ALL
from qpart.patterns import uniform
from qpart.plan import plan
from qpart.solve import Solver
from tests.qpart.planner_cases import (
    SERVER,
    TINY_SERVER,
    ByTrying,
    dense,
    random_tables,
    request,
    residual,
    tiny,
    tiny_request,
)

NETWORKS = {"dense": dense(6, 5, 4, 3), "residual": residual(2)}


def refused(tables, asked, shrink=None) -> Infeasible:
    with pytest.raises(Infeasible) as caught:
        plan(Solver(tables), asked, TINY_SERVER, shrink=shrink or {})
    assert "\n" not in str(caught.value)
    return caught.value


def test_raw_input_stays_forbids_its_copies_too():
    found = plan(Solver(tiny()), tiny_request(raw_input_stays=True), TINY_SERVER)
    assert [row.why for row in found.rows] == ["raw_input_stays", "raw_input_stays", ""]
    assert found.pattern.cut == 2


def test_refusal_names_accuracy():
    """0.5 of noise is the least: accuracy 0.01 + 0.01 * (0.5 - 0.25) / 0.75, but below the level 0.02, so it counts."""
    error = refused(tiny(), tiny_request(0.001))
    assert (error.constraint, error.nearest_accuracy) == ("accuracy", 0.01334)
    assert "0.01334" in str(error)
    assert plan(Solver(tiny()), tiny_request(0.01334), TINY_SERVER).budget >= 0.5


def test_refusal_crosses_processes():
    """A pool of processes that plan is broken for good by an error that cannot be read back."""
    error = refused(tiny(), tiny_request(0.001))
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is Infeasible
    assert (str(again), again.constraint, again.nearest_accuracy) == (str(error), "accuracy", 0.01334)


def test_refusal_between_levels_names_the_next_level():
    """Least noise 2: the map allows it at 0.04, but no level does before 0.05."""
    tables = tiny(weight_psi={1: (2.0,) * 8}, live_psi=({0: (2.0,) * 8}, {1: (2.0,) * 8}, {}))
    assert tables.budget.accuracy_of(2.0) == pytest.approx(0.04)
    error = refused(tables, tiny_request(0.03))
    assert (error.constraint, error.nearest_accuracy) == ("accuracy", 0.05)


def test_refusal_names_memory():
    """No accuracy helps within 25 bytes; cut 0 with 3 bits or more needs 16, so the input must stay for it to bind."""
    error = refused(tiny(), tiny_request(memory_bytes=25, raw_input_stays=True))
    assert (error.constraint, error.nearest_accuracy) == ("memory", None)
    assert "give 89" in str(error)  # 10 of manifest, 15 of weights, 4 * 16
    asked = tiny_request(memory_bytes=89, raw_input_stays=True)
    assert plan(Solver(tiny()), asked, TINY_SERVER).pattern.device_bytes == 89
    assert refused(tiny(), tiny_request(memory_bytes=88, raw_input_stays=True)).constraint == "accuracy"


def test_refusal_names_the_raw_input():
    """What the device would compute is too noisy for every accuracy in the map, and memory would not change it."""
    tables = tiny(weight_psi={1: (9.0,) * 8})
    error = refused(tables, tiny_request(raw_input_stays=True))
    assert (error.constraint, error.nearest_accuracy) == ("raw_input_stays", None)
    assert plan(Solver(tables), tiny_request(), TINY_SERVER).pattern.cut == 0


def test_refusal_where_nothing_helps():
    noisy = (9.0,) * 8
    tables = tiny(weight_psi={1: noisy}, live_psi=({0: noisy}, {1: noisy}, {}))
    for asked in (tiny_request(), tiny_request(memory_bytes=1, raw_input_stays=True)):
        error = refused(tables, asked)
        assert (error.constraint, error.nearest_accuracy) == ("accuracy", None)
        assert "calibrate" in str(error)
        assert "give" not in str(error).replace("given", "")


def test_refusal_names_two_that_help_together():
    """The device's part needs 10 + 20 + 4 * 16 bytes for its least noise of 0.5; the input shown needs 16."""
    error = refused(tiny(), tiny_request(0.001, memory_bytes=1, raw_input_stays=True))
    assert (error.constraint, error.nearest_accuracy) == ("accuracy", None)
    assert str(error).endswith("; ask for a drop of 0.01334 and give 94 bytes of memory")
    error = refused(tiny(), tiny_request(0.001, memory_bytes=25, raw_input_stays=True))
    assert (error.constraint, error.nearest_accuracy) == ("accuracy", None)
    assert "; ask for a drop of 0.01334 and give 94 bytes of memory, or ask for a drop of" in str(error)
    assert str(error).endswith("and let the raw input travel")
    error = refused(tiny(weight_psi={1: (9.0,) * 8}), tiny_request(memory_bytes=1, raw_input_stays=True))
    assert (error.constraint, error.nearest_accuracy) == ("memory", None)
    assert str(error).endswith("; give 16 bytes of memory and let the raw input travel")


def test_refusal_names_three_that_help_together():
    tables = tiny(weight_psi={1: (9.0,) * 8})
    error = refused(tables, tiny_request(0.001, memory_bytes=1, raw_input_stays=True))
    assert (error.constraint, error.nearest_accuracy) == ("accuracy", None)
    assert str(error).endswith("ask for a drop of 0.01334 and give 16 bytes of memory and let the raw input travel")


def test_nearest_accuracy_is_a_higher_level_where_the_first_holds_nothing():
    """At level 0.05 the budget is 2.5; the device alone could meet 0.01334 if level 0.02 had held."""
    asked = tiny_request(0.001, raw_input_stays=True)
    assert refused(tiny(), asked, {(2, 0): 0.0}).nearest_accuracy == 0.05
    assert refused(tiny(), asked, {(2, 0): 0.0, (2, 1): 0.19}).nearest_accuracy is None
    assert refused(tiny(), asked, {(2, BELOW_ALL): 0.0}).nearest_accuracy == 0.02


def test_nearest_accuracy_right_below_the_first_level_has_the_digits_it_needs():
    """Only less than level 0.0133339 would do, and more than 0.0133333: 0.01334 is too much."""
    tables = tiny(levels=(0.0133339, 0.05))
    nothing = {(2, 0): 0.0, (2, 1): 0.0, (2, BELOW_ALL): 1.0}
    nearest = refused(tables, tiny_request(0.001, raw_input_stays=True), nothing).nearest_accuracy
    assert nearest == pytest.approx(0.01 + 0.01 / 3, rel=1e-8)
    plan(Solver(tables), tiny_request(nearest, raw_input_stays=True), TINY_SERVER, shrink=nothing)


@pytest.mark.parametrize("seed", range(60))
def test_refusal_of_any_request_is_right_and_helps(seed):
    """Against every pattern, over a fine grid of accuracies; 50 requests for each of 60 random tables."""
    rng, widths = random.Random(seed), 2 + 2 * (seed % 2)
    tables = random_tables(dense(3, 2, 2) if seed % 2 else NETWORKS["residual"], seed, widths=widths)
    levels = tuple(sorted(math.exp(rng.uniform(-7, -1)) for _ in range(rng.randrange(4))))
    tables = msgspec.structs.replace(tables, levels=levels)
    solver, trying = Solver(tables), ByTrying(tables, widths=widths)
    sizes = sorted({size for patterns in trying.patterns for size in patterns[:, 1].tolist()})
    for _ in range(50):
        shrink = {
            (cut, i): rng.choice((0.0, 0.0, 1e-9, 0.8**5, 0.8, 1.0))
            for cut in range(tables.network.num_nodes + 1)
            for i in range(-1, len(levels) or 1)
            if i == 0 or rng.random() < 0.5
        }
        memory = rng.choice((1, 1 << 30, int(rng.choice(sizes)), int(rng.choice(sizes)) - 1))
        accuracy, stays = math.exp(rng.uniform(-15, -0.01)), rng.random() < 0.6
        asked = request(accuracy, memory_bytes=memory, raw_input_stays=stays)
        try:
            plan(solver, asked, SERVER, shrink=shrink)
            assert trying.served(accuracy, memory, stays, shrink)
        except Infeasible as error:
            assert not trying.served(accuracy, memory, stays, shrink)
            assert_constraint_helps(error, trying, asked, shrink)
            assert_nearest_is_nearest(error, trying, asked, shrink)
            for remedy in remedies(error, asked):
                plan(solver, remedy, SERVER, shrink=shrink)


def assert_constraint_helps(error, trying, asked, shrink):
    """It is the one preferred of the smallest sets of constraints without which something can be served."""
    order = ("accuracy", "memory", "raw_input_stays")

    def helps(given_up) -> bool:
        accuracies = [asked.accuracy, *(trying.best_accuracies() if "accuracy" in given_up else [])]
        memory = math.inf if "memory" in given_up else asked.device.memory_bytes
        stays = asked.raw_input_stays and "raw_input_stays" not in given_up
        return any(trying.served(accuracy, memory, stays, shrink) for accuracy in accuracies)

    sets = [given_up for size in (1, 2, 3) for given_up in itertools.combinations(order, size) if helps(given_up)]
    assert error.constraint == (sets[0][0] if sets else "accuracy")
    assert (error.nearest_accuracy is not None) == helps(("accuracy",))
    several = [given_up for given_up in sets if len(given_up) == len(sets[0])]
    assert len(list(remedies(error, asked))) == len(several)


def assert_nearest_is_nearest(error, trying, asked, shrink):
    """It is served, and what is smaller by more than 4 digits show is not."""
    nearest, rest = error.nearest_accuracy, (asked.device.memory_bytes, asked.raw_input_stays, shrink)
    grid = [*np.geomspace(1e-7, 0.9999, 60).tolist(), *trying.best_accuracies()]
    if nearest is not None:
        assert trying.served(nearest, *rest)
        grid = [one for one in (*grid, *(share * nearest for share in (0.5, 0.9, 0.998))) if one < nearest / 1.0011]
    assert not any(trying.served(accuracy, *rest) for accuracy in grid)


def remedies(error, asked):
    """The requests that a refusal proposes."""
    proposals = [text for text in str(error).partition("; ")[2].split(", or ") if "calibrate" not in text]
    for words in (proposal.split(" and ") for proposal in proposals):
        accuracy, memory, stays = asked.accuracy, asked.device.memory_bytes, asked.raw_input_stays
        for one in words:
            if one.startswith("ask"):
                accuracy = float(one.removeprefix("ask for a drop of "))
            elif one.startswith("give"):
                memory = int(one.removeprefix("give ").removesuffix(" bytes of memory"))
                assert memory > asked.device.memory_bytes
            else:
                assert one == "let the raw input travel"
                assert stays
                stays = False
        yield request(accuracy, memory_bytes=memory, raw_input_stays=stays)


@pytest.mark.parametrize("seed", range(30))
def test_nearest_accuracy_is_enough_and_little_less_is_not(seed):
    tables = random_tables(NETWORKS["residual" if seed % 2 else "dense"], seed, law=True)
    if seed % 5 == 0:
        tables = msgspec.structs.replace(tables, levels=())
    cuts = range(tables.network.num_nodes + 1)
    shrink = {(cut, i): 0.8 ** ((cut * i + seed) % 4) for cut in cuts for i in range(5)}
    solver, tight = Solver(tables), seed % 3 == 0
    memory = min(uniform(tables, cut, 4).device_bytes for cut in cuts) + 600 if tight else 1 << 30

    def ask(accuracy):
        return plan(solver, request(accuracy, memory_bytes=memory, raw_input_stays=True), SERVER, shrink=shrink)

    with pytest.raises(Infeasible) as caught:
        ask(1e-9)
    nearest = caught.value.nearest_accuracy
    if nearest is None:
        with pytest.raises(Infeasible):
            ask(0.999)
        return
    assert caught.value.constraint == "accuracy"
    assert nearest == float(f"{nearest:.4g}")
    ask(nearest)
    with pytest.raises(Infeasible):
        ask(nearest * 0.997)
