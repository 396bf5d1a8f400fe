"""The torch path gives the kernels' answers, here on CPU tensors: words to the bit, tokens and counts equal."""

import subprocess
import sys

import numpy as np
import pytest
from edgekernels import accept, noise_bits, sample

from tests.edgekernels.cases import case

torch = pytest.importorskip("torch")
from edgekernels import torch_backend


@pytest.fixture(autouse=True)
def one_thread():
    """As many threads as the machine has would only disturb the others."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def as_tensor(logits):
    if logits.dtype == np.uint16:
        return torch.from_numpy(logits.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(logits)


def with_tensors(parameters):
    q = parameters.get("q")
    return parameters | ({"q": torch.from_numpy(q)} if isinstance(q, np.ndarray) else {})


@pytest.mark.parametrize("ids", [range(37), range(5, 21), [0, 5, 4, 2**31 - 1], [7], []])
def test_words_are_equal_to_the_bit(ids):
    seeds, positions = [0, 2**64 - 1, 7 << 32 | 5], [0, 2**62 - 1, 3 << 32 | 9]
    words = torch_backend.noise_words(seeds, positions, torch.tensor(list(ids), dtype=torch.int64))
    expected = [noise_bits(s, p, list(ids)).tolist() for s, p in zip(seeds, positions, strict=True)]
    assert words.tolist() == expected


@pytest.mark.parametrize("part", range(3))
def test_any_batch_equals_the_kernels(part):
    for seed in range(part * 1000, part * 1000 + 100):
        (logits, drafts, starts), parameters = case(seed)
        expected = accept(logits, drafts, starts, **parameters)
        verdict = torch_backend.accept(as_tensor(logits), torch.from_numpy(drafts), starts, **with_tensors(parameters))
        assert verdict.accepted.tolist() == expected.accepted.tolist(), seed
        assert verdict.next_token.tolist() == expected.next_token.tolist(), seed
        assert verdict.accepted.dtype == verdict.next_token.dtype == torch.int32


@pytest.mark.parametrize("filters", [{}, {"top_p": 0.9}, {"top_k": 40, "min_p": 0.05}])
def test_real_sizes_equal_the_kernels(filters):
    logits = np.random.default_rng(1).normal(0, 3, (3, 50_257)).astype(np.float32)
    parameters = {"temperature": [0.7, 0.0, 1.2], "seed": 9, "position": [4, 5, 6], **filters}
    assert torch_backend.sample(as_tensor(logits), **parameters).tolist() == sample(logits, **parameters).tolist()
    drafts = logits[:2].argmax(axis=1).astype(np.int32)
    for rule in ("coupled", "rejection", "greedy"):
        own = parameters | {"temperature": 0.7, "position": 4, "rule": rule}
        expected = accept(logits, drafts, np.array([0, 3]), **own)
        verdict = torch_backend.accept(as_tensor(logits), torch.from_numpy(drafts), np.array([0, 3]), **own)
        assert verdict.accepted.tolist() == expected.accepted.tolist()
        assert verdict.next_token.tolist() == expected.next_token.tolist()


def test_mapped_columns_equal_the_kernels():
    rng = np.random.default_rng(4)
    ids = np.sort(rng.choice(5000, 333, replace=False)).astype(np.int32)
    logits = np.round(rng.normal(0, 2, (20, 333))).astype(np.float32)
    for temperature in (0, 0.8):
        parameters = {"temperature": temperature, "position": np.arange(20)}
        chosen = torch_backend.sample(as_tensor(logits), token_ids=torch.from_numpy(ids), **parameters)
        assert chosen.tolist() == sample(logits, token_ids=ids, **parameters).tolist()


def test_logits_are_left_as_they_are():
    logits = torch.tensor([[1.0, float("nan"), 3.0]])
    torch_backend.sample(logits, temperature=1.0, presence_penalty=1.0)
    assert logits[0, 0] == 1
    assert logits[0, 2] == 3
    assert torch.isnan(logits[0, 1])


def test_no_sequences():
    none = torch.empty(0, dtype=torch.int32)
    assert len(torch_backend.sample(torch.empty(0, 5), temperature=1.0)) == 0
    assert len(torch_backend.accept(torch.empty(0, 5), none, np.array([0]), temperature=1.0).accepted) == 0


LOGITS, DRAFTS, STARTS = torch.zeros(3, 4), torch.zeros(1, dtype=torch.int32), np.array([0, 2, 3])


@pytest.mark.parametrize(
    ("error", "match", "changes"),
    [
        (TypeError, "float64", {"logits": LOGITS.double()}),
        (TypeError, "ndarray", {"logits": LOGITS.numpy()}),
        (ValueError, r"\(12,\)", {"logits": LOGITS.reshape(-1)}),
        (ValueError, r"\(2,\)", {"drafts": torch.zeros(2, dtype=torch.int32)}),
        (ValueError, "0 .. 2", {"row_starts": np.array([0, 1, 2])}),
        (ValueError, "-0.5", {"temperature": -0.5}),
        (ValueError, "q is", {"rule": "rejection", "q": torch.zeros(1, 3)}),
        (ValueError, "rule='rejection'", {"q": torch.zeros(1, 4)}),
        (TypeError, r"drafts is ndarray; pass a tensor, torch\.from_numpy", {"drafts": DRAFTS.numpy()}),
        (TypeError, "drafts is torch.float32", {"drafts": DRAFTS.float()}),
        (TypeError, r"q is ndarray; .*torch\.from_numpy", {"rule": "rejection", "q": np.zeros((1, 4), np.float32)}),
    ],
)
def test_wrong_arguments_are_refused(error, match, changes):
    arguments = {"logits": LOGITS, "drafts": DRAFTS, "row_starts": STARTS, "temperature": 1.0} | changes
    with pytest.raises(error, match=match):
        torch_backend.accept(**arguments)
    with pytest.raises(ValueError, match="does not rise"):
        torch_backend.sample(LOGITS, temperature=1.0, token_ids=torch.tensor([3, 1, 2, 0]))


@pytest.mark.parametrize(
    ("error", "match", "ids"),
    [
        (TypeError, r"token_ids is ndarray; pass a tensor, torch\.from_numpy", np.arange(4)),
        (TypeError, r"token_ids is torch\.float32", torch.arange(4.0)),
        (ValueError, r"token_ids has shape \(3,\)", torch.arange(3)),
        (ValueError, r"token_ids has shape \(1, 4\)", torch.arange(4)[None]),
        (ValueError, "token_ids spans -1 .. 2", torch.arange(-1, 3)),
        (ValueError, "token_ids spans 0 .. 2147483648", torch.tensor([0, 1, 2, 2**31])),
        (ValueError, "token_ids is on meta", torch.arange(4, device="meta")),
    ],
)
def test_wrong_token_ids_are_refused(error, match, ids):
    with pytest.raises(error, match=match):
        torch_backend.sample(LOGITS, temperature=1.0, token_ids=ids)


def test_the_kernels_do_not_import_torch():
    script = "import sys, edgekernels; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
