"""Everything that reads what others wrote, fed with nonsense: random, mutated, and well-formed but senseless."""

from __future__ import annotations

import importlib
import json
import os
import random
import re
from pathlib import Path

import msgpack
import pytest
from edgekernels.gguf import GgufFile
from edgekernels.safetensors import SafetensorsFile
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from edgebus import shm
from tests.fuzz import run
from tests.fuzz.hub_world import attack
from tests.fuzz.lane_world import LaneWorld
from tests.fuzz.model_files import on_disk
from tests.fuzz.run import CORPUS, ROOT
from tests.fuzz.socket_world import SocketWorld
from tests.fuzz.targets import SOCKET_TARGETS, TARGETS, seeds
from tests.fuzz.wire_parts import check_frames
from tests.vectors.golden import GOLDEN, VECTORS, frames_of

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
SEEDS = [(name, seed) for name in TARGETS for seed in seeds(name)]


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_taken(name):
    assert list(seeds(name))
    for seed in seeds(name):
        TARGETS[name](seed)


@pytest.mark.parametrize("name", TARGETS | SOCKET_TARGETS)
def test_seeds_are_committed(name):
    """The fuzzer starts from files: python -m tests.fuzz.run --write-corpus writes them."""
    assert [path.name for path in sorted((CORPUS / name).iterdir())] == [
        f"seed{number:02}" for number in range(len(list(seeds(name))))
    ]


def test_every_target_stands_in_the_list_of_decoders():
    listed = (ROOT / "docs/spec/decoders.md").read_text()
    assert set(TARGETS | SOCKET_TARGETS) <= set(re.findall(r"`(\w+)`", listed))


def test_seeds_that_are_model_files_are_read():
    """The targets pass over what is refused, so a seed that is refused would fuzz little."""
    num_tensors = 0
    for seed in seeds("gguf"):
        with on_disk(seed, ".gguf") as path, GgufFile(path) as file:
            num_tensors += len(list(file.read_all()))
    for seed in list(seeds("safetensors"))[:2]:
        with on_disk(seed, ".safetensors") as path, SafetensorsFile(path) as file:
            num_tensors += len(list(file.read_all()))
    assert num_tensors == 13 + 13 + 11 + 2


@pytest.mark.skipif("lies" not in TARGETS, reason="no shared memory here")
def test_seeds_of_lies_reach_what_is_mapped_and_every_reason_not_to(monkeypatch):
    seen = set()

    class Seen(shm.Mapper):
        def view(self, *said):
            try:
                view = super().view(*said)
            except shm.SegmentUnavailable as refused:
                seen.add(refused.reason)
                raise
            seen.add("mapped")
            return view

    monkeypatch.setattr(shm, "Mapper", Seen)
    for seed in seeds("lies"):
        TARGETS["lies"](seed)
    reasons = {"out_of_bounds", "malformed", "not_sealed", "wrong_nonce", "wrong_size", "not_a_segment", "too_much"}
    assert seen >= {"mapped", *reasons}


@pytest.mark.net
def test_nonsense_on_a_socket_does_not_disturb_an_honest_peer():
    world = SocketWorld()
    with world.node, world.device:
        chance = random.Random(5)
        for number, seed in enumerate(seeds("sockets")):
            world.say(seed)
            mutant = bytearray(seed)
            mutant[chance.randrange(len(mutant))] ^= 1 << number % 8
            world.say(bytes(mutant))
            world.say(seed[: chance.randrange(len(seed))])
        assert world.link.request("echo", b"still there").payload == b"still there"
        assert world.link.health == "up"


@pytest.mark.net
@pytest.mark.skipif("lanes" not in SOCKET_TARGETS, reason="no shared memory here")
def test_nonsense_in_a_pipe_does_not_disturb_an_honest_peer():
    world = LaneWorld()
    try:
        chance = random.Random(5)
        for seed in seeds("lanes"):
            mutant = bytearray(seed)
            mutant[chance.randrange(len(mutant))] ^= 1 << chance.randrange(8)
            for said in (seed, bytes(mutant), seed[: chance.randrange(len(seed))]):
                world.say(said)
        world.check(whole=True)
        assert world.node._engine.hub.malformed > 10
    finally:
        world.close()


@pytest.mark.parametrize("name", TARGETS)
@QUICK
@given(data=st.binary(max_size=400))
def test_random_bytes_break_nothing(name, data):
    TARGETS[name](data)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(SEEDS), st.data())
def test_mutated_seeds_break_nothing(seed, data):
    name, raw = seed
    TARGETS[name](mutated(raw, data))


@pytest.mark.timeout(60, func_only=True)
@pytest.mark.parametrize("first", range(0, 1000, 250))
def test_hub_under_attack_keeps_its_bounds_and_the_honest_peer(first):
    """Scripts with much in them: hypothesis likes few bytes. A failing seed is `attack(random.Random(seed)...)`."""
    for seed in range(first, first + 250):
        chance = random.Random(seed)
        attack(chance.randbytes(chance.randrange(100, 900)))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=5))
@example([b"\x95\x04\x00\xa1\xff\x01\x00", b""])
def test_random_frames_raise_only_wire_errors(frames):
    check_frames(frames)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(GOLDEN)), st.data())
def test_mutated_good_messages_raise_only_wire_errors(name, data):
    vector = next(vector for vector in VECTORS if vector["name"] == name)
    check_frames([mutated(bytes.fromhex(vector["hex"]), data), *frames_of(vector["frames"])])


JSONISH = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 20), st.lists(JSONISH, max_size=9), st.lists(st.binary(max_size=64), max_size=3))
def test_well_formed_nonsense_raises_only_wire_errors(tag, elements, body):
    check_frames([msgpack.packb([tag, *elements]), *body])


def mutated(raw, data):
    """One to four bytes changed, cut off or put in."""
    mutant = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, max(0, len(mutant) - 1)))
        match data.draw(st.sampled_from(["flip", "cut", "insert"])):
            case "flip" if mutant:
                mutant[position] = data.draw(st.integers(0, 255))
            case "cut":
                del mutant[max(1, position) :]
            case _:
                mutant[position:position] = data.draw(st.binary(max_size=5))
    return bytes(mutant)


@pytest.mark.skipif("EDGEBUS_FUZZ_SANITIZER" not in os.environ, reason="for scripts/fuzz.sh, with its sanitizers")
def test_what_runs_under_the_sanitizers_was_built_for_them():
    for name in ("edgebus.wire", "edgebus._handed", "edgebus._tcp", "edgebus._port", "edgekernels._bits"):
        assert b"__asan_report" in Path(importlib.import_module(name).__file__).read_bytes(), name


def test_record_of_some_targets_keeps_the_others_and_the_notes(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "RECORD", tmp_path / "fuzz.json")
    one = {"executed": 5, "seconds": 1.0, "covered_edges": 3, "corpus": 1, "findings": []}
    run._record("plain", "", {"wire": one, "hub": one})
    run._note("plain:tests=passed")
    run._record("plain", "", {"hub": one | {"executed": 7}})
    kept = json.loads((tmp_path / "fuzz.json").read_text())["plain"]
    assert (kept["executed"], kept["tests"], list(kept["targets"])) == (12, "passed", ["wire", "hub"])
