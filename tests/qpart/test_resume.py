"""A calibration that is killed goes on where it was, and comes to the very same file."""

import os
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from qpart import artefact
from qpart.calibrate import calibrate
from qpart.executors.sensitivity import NEGLIGIBLE
from qpart.executors.simulator import Simulator
from tests.qpart import small

CHILD = """
import os, signal, sys
from pathlib import Path
from tests.qpart.test_resume import run
stage, number = sys.argv[2], int(sys.argv[3])
count = 0
def progress(name, share):
    global count
    count += name == stage
    if count > number:
        os.kill(os.getpid(), signal.SIGKILL)
run(Path(sys.argv[1]), progress)
"""


def run(partial, progress=lambda stage, share: None):
    images, labels = small.examples(200, seed=2)
    return calibrate(
        small.network(), small.parameters(), images, name="x", labels=labels, num_patterns=20, levels=(0.05, 0.2),
        partial=partial, progress=progress,
    )  # fmt: skip


@cache
def undisturbed(directory):
    return artefact.save(run(None), directory / "whole.qpart").model_id


def killed(partial, stage, number):
    """Calibrate in a process that is killed in a stage, when so much of it was told."""
    command = [sys.executable, "-c", CHILD, str(partial), stage, str(number)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], env=os.environ, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert partial.is_file()


def test_killed_in_its_patterns_it_measures_no_tensor_again(tmp_path, monkeypatch):
    expected, partial, measured = undisturbed(tmp_path), tmp_path / "x.partial", []
    killed(partial, "random patterns", 7)
    joint = Simulator.joint
    monkeypatch.setattr(Simulator, "joint", lambda self, *args: measured.append(args) or joint(self, *args))
    monkeypatch.setattr(Simulator, "all_values", lambda self, inputs: pytest.fail("tensors were measured again"))
    found = run(partial)
    assert len(measured) < 20 - 6 + len(found.verified)
    assert artefact.save(found, tmp_path / "again.qpart").model_id == expected
    assert partial.is_file()  # until whoever called has saved what was found


@pytest.mark.slow
def test_killed_again_and_again_it_comes_to_the_same_file(tmp_path):
    partial = tmp_path / "x.partial"
    for stage, number in (("preparing", 2), ("noise of single tensors", 5), ("noise of single tensors", 9),
                          ("random patterns", 3), ("verifying", 4)):  # fmt: skip
        killed(partial, stage, number)
    found = artefact.save(run(partial), tmp_path / "again.qpart")
    assert found.model_id == undisturbed(tmp_path)
    assert partial.is_file()  # until whoever called has saved what was found


def test_another_question_begins_anew(tmp_path):
    images, _ = small.examples(200, seed=2)
    partial = tmp_path / "x.partial"

    def stop(stage, share):
        if stage == "random patterns":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(partial, stop)
    seen = []
    calibrate(
        small.network(), small.parameters(), images[::-1], name="x", num_patterns=20, levels=(0.05, 0.2),
        partial=partial, progress=lambda stage, share: seen.append(stage),
    )  # fmt: skip
    alone = []
    calibrate(
        small.network(), small.parameters(), images[::-1], name="x", num_patterns=20, levels=(0.05, 0.2),
        progress=lambda stage, share: alone.append(stage),
    )  # fmt: skip
    assert seen == alone


def test_labels_are_reported_and_decide_nothing():
    with_labels, without = run(None), small_without()
    assert with_labels.tables == without.tables
    assert with_labels.shrink == without.shrink
    assert 0.5 < with_labels.extent.accuracy <= 1
    assert all(trial.drop is not None and trial.drop <= trial.share for trial in with_labels.trials)
    assert all(one.drop is not None for one in with_labels.verified)
    assert without.extent.accuracy is None
    assert without.trials[0].drop is None


def small_without():
    images, _ = small.examples(200, seed=2)
    return calibrate(small.network(), small.parameters(), images, name="x", num_patterns=20, levels=(0.05, 0.2))


def test_rows_end_early_only_where_that_cannot_matter():
    images, _ = small.examples(2000, seed=2)
    full = calibrate(small.network(), small.parameters(), images, name="x", num_patterns=20, levels=(0.2,),
                     noise_inputs=2000)  # fmt: skip
    few = calibrate(small.network(), small.parameters(), images[:150], name="x", num_patterns=20, levels=(0.2,))
    spent = full.extent
    assert spent.row_forwards < 0.5 * spent.rows * 8 * 2000
    scale = few.margin / full.margin
    for node, row in few.tables.weight_psi.items():
        for psi, known in zip(row, full.tables.weight_psi[node], strict=True):
            assert psi * scale == pytest.approx(known, rel=0.35, abs=NEGLIGIBLE)
