"""`sled distill` from a tiny target to drafters that load: stopped, killed, gone on, refused."""

from __future__ import annotations

import json
import signal

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from edgekernels.decoder import load_decoder
from edgekernels.safetensors import SafetensorsFile

from sled.distill.alone import alone_in
from sled.distill.run import Machine, distill
from sled.distill.trainer import Every
from sled.drafters import open_drafter
from sled.errors import DirectoryInUse, ParameterError, UnknownModel
from sled.messages import Described
from tests.sled.distilling import prompts_in, settings_for, target_in

OFTEN = Machine("cpu", every=Every(0.0, 1e9, 0.0))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tiny_target(tmp_path_factory):
    directory = tmp_path_factory.mktemp("target")
    return target_in(directory), prompts_in(directory)


@pytest.fixture(scope="module")
def done(tiny_target, tmp_path_factory):
    """A whole run, uninterrupted."""
    out = tmp_path_factory.mktemp("done")
    said = []
    settings = settings_for(*tiny_target)
    kinds = ("q8_0", "q4_0", "f16")
    assert distill(settings, out, gguf=kinds, licence="CC0-1.0", machine=OFTEN, say=said.append)
    return out, said


def events(out, kind):
    lines = [json.loads(line) for line in (out / "report.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


def weights(path):
    with SafetensorsFile(path) as file:
        return dict(file.read_all())


def described(out):
    config = json.loads((out / "1m" / "config.json").read_text())
    vocab_hash = bytes.fromhex(config["target_vocab_hash"])
    return Described("tiny", "float32", config["vocab_size_target"], vocab_hash, 256, 16, [1])


def test_a_run_leaves_drafters_a_report_and_a_card(done):
    out, said = done
    names = {path.name for path in out.iterdir()}
    kinds = {f"1m.{kind}.gguf" for kind in ("q8_0", "q4_0", "f16")}
    state = {"checkpoint.safetensors", "corpus", "running", "settings.json"}
    assert names == kinds | state | {"1m", "README.md", "report.jsonl"}
    card = (out / "README.md").read_text()
    assert "CC0-1.0" in card
    assert "| greedy |" in card
    assert "24 steps of 6 texts" in card
    (evaluated,) = events(out, "evaluated")
    assert set(evaluated["acceptance"]) == {"greedy", "0.7", "1.0"}
    greedy = evaluated["acceptance"]["greedy"]
    assert set(greedy["mean_accepted"]) == {"1", "2", "4", "8"}
    assert len(greedy["by_place"]) == 8
    assert 0 <= greedy["acceptance"] <= 1
    assert any("tokens/s" in line for line in said)


def test_the_loss_falls(done):
    losses = [line["losses"]["1m"]["kl"] for line in events(done[0], "trained")]
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])


def test_a_loss_is_that_of_the_steps_since_the_last_evaluation(done, tiny_target, tmp_path):
    machine = Machine("cpu", every=Every(1e9, 0.0, 1e9))  # evaluated after every step, told of the last one alone
    assert distill(settings_for(*tiny_target), tmp_path, machine=machine, say=lambda line: None)
    assert events(tmp_path, "trained")[-1]["losses"] == events(done[0], "trained")[-1]["losses"]


def test_every_file_holds_the_same_drafter(done):
    """Native, exactly: the directory and the GGUF file in float16; nearly: 8 bits; by name: torch."""
    out, _ = done
    tokens = np.arange(40) % 64
    exact = [load_decoder(out / name, activations="float") for name in ("1m", "1m.f16.gguf")]
    first, second = (decoder.forward(tokens, decoder.new_cache(dtype="float32"), num_logits=40) for decoder in exact)
    np.testing.assert_allclose(first, second, rtol=0, atol=5e-3)  # norms are float16 in one, float32 in the other
    drafters = [open_drafter(str(out / name), described(out)) for name in ("1m", "1m.q8_0.gguf", "1m.q4_0.gguf")]
    drafters += [open_drafter(f"torch:{out / name}", described(out)) for name in ("1m", "1m.f16.gguf")]
    likeliest = [[int(drafter.model.read(tokens[i : i + 1]).argmax()) for i in range(40)] for drafter in drafters]
    for found, agreeing in zip(likeliest, (0.9, 0.9, 0.6, 1.0, 0.97), strict=True):
        assert np.mean(np.equal(found, likeliest[3])) >= agreeing


def test_ids_of_its_own_are_the_target_s_most_used(done):
    out, _ = done
    ids = weights(out / "1m" / "model.safetensors")["draft_to_target"]
    assert len(ids) == 64
    assert (np.diff(ids) > 0).all()
    assert 1 in ids  # what ends a turn is there in any case


def test_a_killed_run_goes_on_to_the_same_weights(done, tiny_target, tmp_path):
    """Killed while it writes the corpus, killed while it trains: the result is that of the run nobody disturbed."""
    asked = 0

    class Killed(BaseException):
        pass

    def killed_at(number):
        def stopped():
            nonlocal asked
            asked += 1
            if asked == number:
                raise Killed
            return False

        return stopped

    settings, seen = settings_for(*tiny_target), []
    for number in (100, 63 + 12):
        with pytest.raises(Killed):
            distill(settings, tmp_path, machine=OFTEN, say=seen.append, stopped=killed_at(number))
        asked = 0
        seen.append(f"rounds {len(list((tmp_path / 'corpus').iterdir()))}")
    assert [line for line in seen if line.startswith("rounds")] == ["rounds 1", "rounds 2"]
    assert distill(settings, tmp_path, machine=OFTEN, say=seen.append)
    steps = [line["step"] for line in events(tmp_path, "trained")]
    assert steps[-1] == 24
    assert steps == sorted(set(steps))  # gone on, not begun again
    ours, theirs = (weights(out / "1m" / "model.safetensors") for out in (tmp_path, done[0]))
    for name, weight in theirs.items():
        np.testing.assert_array_equal(ours[name], weight, err_msg=name)


def test_a_stopped_run_says_how_to_go_on(tiny_target, tmp_path):
    said, asked = [], iter(range(10_000))
    settings = settings_for(*tiny_target)
    assert not distill(settings, tmp_path, machine=OFTEN, say=said.append, stopped=lambda: next(asked) > 80)
    assert said[-1] == "stopped after 1 rounds; the same command goes on from here"
    assert not distill(settings, tmp_path, machine=OFTEN, say=said.append, stopped=lambda: next(asked) > 155)
    assert said[-1].startswith("stopped at step ")
    assert (tmp_path / "checkpoint.safetensors").is_file()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"batch": 7}, "was begun with batch 6, now it is 7; give what it was, or another directory"),
        ({"steps": 25}, "was begun with steps 24, now it is 25"),
        ({"students": ("prune:0",), "sizes": ()}, r"was begun with students \['1m'\], now it is \['prune:0'\]"),
        ({"length": 300}, "length is 300, .* knows 256 positions"),
        ({"students": ("2m",), "sizes": ()}, "no student '2m': give one of 1m, 3m, 12m, 25m, 50m, or prune:0,1"),
        ({"students": ("prune:0,2",), "sizes": ()}, "names layer 2, the target has 2, from 0 on"),
    ],
)
def test_other_settings_are_refused(done, tiny_target, change, what):
    with pytest.raises(ParameterError, match=what):
        distill(settings_for(*tiny_target, **change), done[0], machine=OFTEN, say=print)


def test_other_prompts_under_the_same_name_are_refused(done, tiny_target, tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a\nb\nc\nd\ne\n")
    with pytest.raises(ParameterError, match="was begun with prompts"):
        distill(settings_for(tiny_target[0], path), done[0], machine=OFTEN, say=print)


def test_damaged_states_are_refused(done, tiny_target, tmp_path):
    import shutil

    settings = settings_for(*tiny_target)
    for file, content, what in (
        ("corpus/00001.npz", b"PK\x03\x04 and no more", r"00001\.npz is damaged .*; remove it and those after it"),
        ("checkpoint.safetensors", b"\xff" * 64, "cannot be gone on from .*; remove it to train anew"),
        ("settings.json", b"[" * 100_000, "cannot be read .*; use another directory"),
        ("settings.json", b"[]", "cannot be read"),
    ):
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(done[0], out)
        (out / file).write_bytes(content)
        with pytest.raises(ParameterError, match=what):
            distill(settings, out, machine=OFTEN, say=print)


def test_layers_of_the_target_make_the_target(tiny_target, tmp_path):
    """A student that keeps all layers and ids is the target, before a step has been made."""
    said = []
    settings = settings_for(*tiny_target, students=("prune:0,1",), sizes=(("vocab", 0),), steps=1, lr=1e-8)
    assert distill(settings, tmp_path, machine=OFTEN, say=said.append)
    (evaluated,) = events(tmp_path, "evaluated")
    assert evaluated["acceptance"]["greedy"]["acceptance"] == 1.0
    assert evaluated["acceptance"]["1.0"]["rejection_rule"] > 0.999
    assert evaluated["acceptance"]["1.0"]["acceptance"] > 0.999
    tensors = weights(tmp_path / "prune-0-1" / "model.safetensors")
    assert "draft_to_target" not in tensors
    assert "lm_head.weight" in tensors  # the target does not tie its head


def test_targets_that_are_none_are_refused(tmp_path):
    with pytest.raises(UnknownModel, match="no model"):
        distill(settings_for(tmp_path / "nothing", prompts_in(tmp_path)), tmp_path / "out", say=print)


@pytest.mark.parametrize("device", ["nowhere", "cpu:x", "xla"])
def test_devices_that_are_none_are_refused(tiny_target, tmp_path, device):
    with pytest.raises(ParameterError, match=f"device is '{device}', which torch does not have here"):
        distill(settings_for(*tiny_target), tmp_path / "out", machine=Machine(device), say=print)


def test_the_command_line_checks_what_it_is_given(monkeypatch):
    from sled.cli.distill import Stop, _size

    assert _size("vocab=0") == ("vocab", 0)
    for wrong in ("vocab", "vocab=-1", "depth=3", "width=x"):
        with pytest.raises(ParameterError, match=f"size is '{wrong}'; give vocab, width"):
            _size(wrong)
    kept = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        stop = Stop()
        assert not stop()
        signal.raise_signal(signal.SIGTERM)
        assert stop()
        assert stop.number == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), kept, strict=True):
            signal.signal(number, handler)


def test_second_run_is_refused_before_it_loads_a_target(tiny_target, tmp_path, monkeypatch):
    monkeypatch.setattr("sled.distill.run._load", lambda *_: pytest.fail("a second target was loaded"))
    with alone_in(tmp_path), pytest.raises(DirectoryInUse):
        distill(settings_for(*tiny_target), tmp_path, machine=OFTEN)
