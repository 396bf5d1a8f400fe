"""What a device has learned of its drafter, from process to process."""

import logging
import math
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgebus
from bench.macro._links_texts import DRAFTERS, LINKS
from bench.macro._links_world import FORWARDS, Cell, rate_of
from sled.auto_pace import AutoPace
from sled.calibration import MOST_TOKENS, Calibration
from sled.drafters.opening import model_files
from sled.kept import MAX_BYTES, MAX_PAIRS, Kept, drafter_id, kept_of, pack, restore, unpack, with_pair
from sled.learned import Learned
from sled.messages import Described
from sled.pace import FixedPace
from sled.run.around import Around
from sled.run.memory import EVERY_S, NAME, Memory
from sled.testing import ToyDrafter
from sled.types import Sampling
from sled.window import Window

TARGET, DRAFTER = b"t" * 16, drafter_id("ngram")


def taught(share=1.0, draft_s=0.003) -> Learned:
    """A device that has heard of a few hundred tokens."""
    learned = Learned()
    pace, now = AutoPace(learned), 0.0
    for number in range(60):
        now += 0.1
        pace.drafted(4, 4 * draft_s)
        pace.more([], 0.7, ())
        pace.told([0.7] * 4, 4 if number % 10 < 10 * share else 0, 0.080, (), now=now)
    pace.read(100, 0.030)
    return learned


def never_right(target=TARGET, drafter=DRAFTER) -> Kept:
    """As many tokens as a file may have, all wrong."""
    following = Calibration().counts()[2]
    return Kept(target, drafter, [[MOST_TOKENS / 56] * 11] * 5, [[0.0] * 11] * 5, following)


def test_what_is_restored_is_what_was_kept_and_nothing_of_the_link_and_of_speed():
    learned = taught()
    kept = kept_of(learned, TARGET, DRAFTER)
    assert kept is not None
    again = restore(unpack(pack([kept]))[0])
    learned.calibration.answer()
    for run in (0, 1, 3, 9):
        for confidence in (0.05, 0.7, 0.99):
            assert again.calibration.hazard([confidence], run) == learned.calibration.hazard([confidence], run)
    assert again.calibration.next_hazard(0, 0) == learned.calibration.next_hazard(0, 0)
    assert again.draft_s == again.rate == again.turnaround.of(4) == again.by_itself.draft_rate == 0.0
    assert math.isnan(again.read_s)


def test_the_first_round_of_the_second_process_is_as_long_as_the_text_deserves():
    def first_round(learned):
        pace, round_ = AutoPace(learned), []
        assert not pace.streams(100, 0.001)
        pace.drafted(1, 0.003)
        while len(round_) < 16 and pace.another(round_, (), None):
            round_.append(0.7)
        return len(round_)

    kept = kept_of(taught(share=1.0), TARGET, DRAFTER)
    assert kept is not None
    assert first_round(Learned()) <= 6
    assert first_round(restore(kept)) >= 12


def test_little_is_not_worth_keeping_nor_what_is_of_no_known_target():
    assert kept_of(Learned(), TARGET, DRAFTER) is None
    assert kept_of(taught(), b"", DRAFTER) is None
    assert kept_of(taught(), b"t" * 17, DRAFTER) is None


@pytest.mark.parametrize("slow_s", [0.06, 5.0])
def test_a_process_in_which_the_drafter_was_slow_does_not_spoil_the_next_ones(slow_s):
    # The machine was busy, or hot: no draft paid. Each process gives one short answer.
    quick = Cell(DRAFTERS[2], LINKS[0], FORWARDS["flat 60 ms"]).with_prompt(31)
    usual, learned = Learned(), taught(share=0.8, draft_s=slow_s)
    for _ in range(3):
        kept = kept_of(learned, TARGET, DRAFTER)
        assert kept is not None
        learned = restore(kept)
        rate = rate_of(quick, lambda known=learned: AutoPace(known), 16, tokens=48, answers=1, seed=31)
    assert rate >= 0.8 * rate_of(quick, lambda: AutoPace(usual), 16, tokens=48, answers=1, seed=31)
    assert rate >= 1.5 * rate_of(quick, lambda: FixedPace(Window(0)), 1, tokens=48, answers=1, seed=31)


def test_a_file_that_says_never_is_corrected_within_few_answers():
    easy = Cell(DRAFTERS[1], LINKS[0], FORWARDS["flat 60 ms"]).with_prompt(31)
    learned = restore(never_right())
    first, then = (rate_of(easy, lambda: AutoPace(learned), 16, tokens=48, answers=4, seed=32 + n) for n in range(2))
    fresh = Learned()
    rate_of(easy, lambda: AutoPace(fresh), 16, tokens=48, answers=4, seed=32)
    usual = rate_of(easy, lambda: AutoPace(fresh), 16, tokens=48, answers=4, seed=33)
    assert first > 0.5 * usual
    assert then > 0.8 * usual


def test_the_file_is_bounded_and_the_newest_pair_comes_first():
    kept = kept_of(taught(), TARGET, DRAFTER)
    assert kept is not None
    pairs = []
    for number in range(3 * MAX_PAIRS):
        pairs = with_pair(pairs, msgspec.structs.replace(kept, drafter_id=bytes([number]) * 16))
    again = with_pair(pairs, msgspec.structs.replace(never_right(), drafter_id=pairs[5].drafter_id))
    assert len(again) == len(pairs) == MAX_PAIRS
    assert again[0].right == never_right().right
    assert len({each.drafter_id for each in again}) == MAX_PAIRS
    assert len(pack(again)) <= MAX_BYTES


@settings(max_examples=60)
@given(st.data())
def test_a_damaged_file_is_an_error_that_is_said(data):
    kept = kept_of(taught(), TARGET, DRAFTER)
    assert kept is not None
    content = pack([kept])
    at = data.draw(st.integers(0, len(content) - 1))
    how = data.draw(st.sampled_from(["cut", "flip", "noise"]))
    if how == "cut":
        content = content[:at]
    elif how == "flip":
        content = content[:at] + bytes([content[at] ^ data.draw(st.integers(1, 255))]) + content[at + 1 :]
    else:
        content = data.draw(st.binary(max_size=200))
    with pytest.raises(ValueError, match=r"it|not a valid"):
        unpack(content)


@pytest.mark.parametrize(
    "wrong",
    [
        {"tried": [[1.0]]},
        {"right": [[2.0] * 11] * 5, "tried": [[1.0] * 11] * 5},
        {"following": [[0.0] * 11] * 14},
        {"following": [[5e-324] * 11] * 14},  # nothing is left of their product with a share
        {"tried": []},
        {"tried": [[MOST_TOKENS / 10] * 11] * 5},
    ],
)
def test_counts_that_no_calibration_has_are_refused(wrong):
    kept = kept_of(taught(), TARGET, DRAFTER)
    assert kept is not None
    with pytest.raises(ValueError, match="counts"):
        restore(msgspec.structs.replace(kept, **wrong))


@pytest.mark.parametrize(
    "wrong",
    [{"tried": [[wrong] * 11] * 5} for wrong in (math.inf, math.nan, -1.0, 2e3)]
    + [{"target_id": b""}, {"target_id": b"t" * 17}, {"drafter_id": b"d" * 17}],
)
def test_numbers_out_of_bounds_do_not_decode(wrong):
    kept = kept_of(taught(), TARGET, DRAFTER)
    assert kept is not None
    with pytest.raises(ValueError, match="not a valid"):
        unpack(pack([msgspec.structs.replace(kept, **wrong)]))


class Disk:
    """A directory and a clock."""

    def __init__(self) -> None:
        self.files: dict[Path, bytes] = {}
        self.now, self.writes, self.full = 0.0, 0, False
        self.around = Around(clock=lambda: self.now, keep=self._write, read=self._read)

    def _write(self, path, content):
        if self.full:
            raise OSError("no space")
        self.writes += 1
        self.files[path] = content

    def _read(self, path, most):
        if path not in self.files:
            raise FileNotFoundError(path)
        return self.files[path][:most]

    def memory(self, target=TARGET, drafter="ngram") -> Memory:
        return Memory(Path("/d"), target, drafter, self.around)


def heard_of(learned) -> float:
    return sum(map(sum, learned.calibration.counts()[0]))


def test_another_target_or_drafter_knows_nothing_and_takes_nothing_away():
    disk = Disk()
    disk.memory().save(taught())
    assert heard_of(disk.memory(target=b"u" * 16).load()) == 0.0
    assert heard_of(disk.memory(drafter="none").load()) == 0.0
    disk.memory(drafter="none").save(taught(share=0.0))
    assert heard_of(disk.memory().load()) == pytest.approx(heard_of(taught()))
    assert heard_of(disk.memory(drafter="none").load()) == pytest.approx(heard_of(taught(share=0.0)))


def test_it_is_written_at_most_once_a_minute_and_only_if_there_is_news():
    disk, learned = Disk(), taught()
    memory = disk.memory()
    memory.look(Learned())
    assert disk.writes == 0  # nothing is known yet
    memory.look(learned)
    learned.calibration.told([0.7], 1)
    memory.look(learned)
    assert disk.writes == 1
    disk.now = EVERY_S
    memory.look(learned)
    disk.now = 2 * EVERY_S
    memory.look(learned)
    assert disk.writes == 2


@pytest.mark.parametrize("content", [b"", b"x" * 50, b"SLEDKEPT\x02\x00" + b"0" * 40, b"SLEDKEPT" * (MAX_BYTES // 4)])
def test_a_bad_file_is_ignored_with_a_line_in_the_log_and_written_anew(content, caplog):
    disk = Disk()
    disk.files[Path("/d") / NAME] = content
    with caplog.at_level(logging.WARNING, logger="sled.device"):
        assert heard_of(disk.memory().load()) == 0.0
    assert "ignored" in caplog.text
    disk.memory().save(taught())
    assert heard_of(disk.memory().load()) > 0.0


def test_a_first_start_says_nothing_and_a_full_disk_costs_a_line(caplog):
    disk = Disk()
    assert heard_of(disk.memory().load()) == 0.0
    assert not caplog.records
    disk.full = True
    disk.memory().save(taught())
    assert "could not be kept" in caplog.text


def test_a_model_that_was_changed_is_another_drafter(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"one")
    before = drafter_id(str(path), model_files(f"ngram+{path}") or model_files(str(path)))
    path.write_bytes(b"three")
    assert drafter_id(str(path), model_files(str(path))) != before
    assert len(model_files("ngram+smollm2-12m")) == 1
    assert model_files("ngram") == model_files("no such thing") == []


def test_a_directory_with_other_weights_in_it_is_another_drafter(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    weights = model / "model.safetensors"
    weights.write_bytes(b"one")
    before = model_files(str(model))
    with weights.open("r+b") as file:  # in place: the directory's own time stays as it was
        file.write(b"three")
    assert model_files(str(model)) != before


def test_a_damaged_calibration_is_never_made():
    tried, right, following = Calibration().counts()
    with pytest.raises(ValueError, match="rows"):
        Calibration.of_counts(tried[:3], right, following)


# -- devices

PROMPTS = [[5, 6, 7], [9, 1, 2], [30, 31], [4, 4], [17, 3], [12, 40]]


@pytest.fixture
def named(monkeypatch, served):
    """A drafter that users can name: mostly right, and so quick beside the target that drafts pay at any moment."""
    verify = served.target.verify
    monkeypatch.setattr(served.target, "verify", lambda *step: time.sleep(0.004) or verify(*step))
    monkeypatch.setattr("sled.run.device.open_drafter", lambda *_, **__: ToyDrafter(served.target, error=0.1))
    return "toy"


def answers(device):
    return [device.generate(prompt, max_tokens=40).answer().tokens for prompt in PROMPTS]


def test_a_second_device_begins_with_what_the_first_one_learned_and_answers_the_same(served, named):
    right = [served.target.plain_answer(prompt, Sampling(), 40) for prompt in PROMPTS]
    with served.serving() as endpoint:
        with served.device(endpoint, named) as device:
            assert answers(device) == right
            learned = device._learned
        assert (served.directory / "cache" / NAME).stat().st_mode & 0o777 == 0o600
        with served.device(endpoint, named) as device:
            assert heard_of(device._learned) == heard_of(learned) > 0.0
            assert device._learned.rate == 0.0
            assert answers(device) == right
        with served.device(endpoint, named, remember=False) as device:
            assert heard_of(device._learned) == 0.0
        with served.device(endpoint, ToyDrafter(served.target)) as device:  # nobody knows which one it is
            assert heard_of(device._learned) == 0.0


def test_what_an_answer_taught_is_kept_when_it_ends_and_its_text_begins_when_it_is_read(served, named):
    path = served.directory / "cache" / NAME
    with served.serving() as endpoint, served.device(endpoint, named) as device:
        calibration = device._learned.calibration
        late = device.generate(PROMPTS[1])
        answers(device)
        assert path.exists()  # a process that is killed now has not worked for nothing
        calibration.told([0.5] * 4, 4)
        assert calibration.run >= 4
        third = device.generate(PROMPTS[2])
        assert calibration.run >= 4  # whoever only asks for another answer changes nothing of one that is under way
        next(iter(late))
        late.close()
        third.close()
        calibration.told([0.5] * 4, 4)
        begun: list[int] = []
        real, calibration.answer = calibration.answer, lambda: begun.append(1) or real()
        device.generate(PROMPTS[3]).answer()
        assert begun == [1]


def test_a_device_is_closed_although_what_it_learned_cannot_be_written(served, named, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with served.serving() as endpoint:
        device = served.device(endpoint, named)
        monkeypatch.setattr(Memory, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            device.close()
        with pytest.raises(edgebus.EdgebusError):
            device._call("sled.describe", b"", Described)


def test_a_hostile_file_changes_no_answer(served, named):
    right = [served.target.plain_answer(prompt, Sampling(), 40) for prompt in PROMPTS]
    path = served.directory / "cache" / NAME
    never = never_right(served.target.described.target_id, drafter_id(named))
    always = msgspec.structs.replace(never, right=never.tried)
    path.parent.mkdir()
    with served.serving() as endpoint:
        for lies in (never, always):
            path.write_bytes(pack([lies]))
            with served.device(endpoint, named) as device:
                assert device._learned.calibration.counts()[1] == lies.right  # it is believed,
                assert answers(device) == right  # and that costs speed only
        path.write_bytes(b"junk")
        with served.device(endpoint, named) as device:
            assert answers(device) == right
        path.unlink()
        path.mkdir()  # it can neither be read nor written
        with served.device(endpoint, named) as device:
            assert answers(device) == right


def test_a_device_that_fails_to_begin_keeps_what_was_known(served, named, monkeypatch):
    with served.serving() as endpoint:
        with served.device(endpoint, named) as device:
            answers(device)
        before = (served.directory / "cache" / NAME).read_bytes()

        def fails(*_, **__):
            raise ValueError("no")

        monkeypatch.setattr("sled.run.device.guarded", fails)
        with pytest.raises(ValueError, match="no"):
            served.device(endpoint, named)
        assert (served.directory / "cache" / NAME).read_bytes() == before
