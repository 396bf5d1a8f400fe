"""The captured, compiled target on a GPU against the model's own forward. Runs where there is one; CI has none."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

from sled.acceptance import RoundRows
from sled.targets.graphed import GraphedTarget
from sled.types import Sampling
from tests.sled.tiny_models import VOCAB, FakeCodec, Paging, fill_with_nan, tiny

pytestmark = [pytest.mark.model, pytest.mark.cuda]


def graphed(family: str, dtype=torch.float32, **more) -> GraphedTarget:
    return GraphedTarget(tiny(family, dtype, **more).cuda(), FakeCodec(), name="tiny", kv_bytes=64 << 20)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral, window 8", "gemma2", "gemma3", "gpt2", "phi"])
def test_ragged_batches_with_rollback_equal_the_plain_forward(family):
    plain, target = tiny(family).cuda(), graphed(family)
    plain.set_attn_implementation("eager")
    fill_with_nan(target)
    rng, paging = np.random.default_rng(1), Paging(target)
    texts = [rng.integers(VOCAB, size=n).tolist() for n in (3, 150, 1)]
    kept = [0, 0, 0]
    for _ in range(8):
        chunks, checks = [], []
        for s in [s for s in range(3) if rng.random() < 0.8] or [0]:
            draft = rng.integers(VOCAB, size=rng.integers(0, 6)).tolist()
            chunks.append(paging.chunk(s, texts[s][kept[s] :] + draft, kept[s], len(draft) + 1))
            checks.append((texts[s] + draft, len(draft) + 1))
            accepted = int(rng.integers(0, len(draft) + 1))
            texts[s] += [*draft[:accepted], int(rng.integers(VOCAB))]
            kept[s] = len(texts[s]) - 1
        rows = target._captured_logits(chunks).cpu()
        with torch.inference_mode():
            right = [plain(torch.tensor([text]).cuda(), use_cache=False).logits[0, -n:].cpu() for text, n in checks]
        torch.testing.assert_close(rows, torch.cat(right), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near(dtype):
    plain, target = tiny("llama").cuda(), graphed("llama", dtype)
    text, paging = np.random.default_rng(2).integers(VOCAB, size=200).tolist(), Paging(target)
    rows = target._captured_logits([paging.chunk(0, text, 0, 8)]).float()
    with torch.inference_mode():
        right = plain(torch.tensor([text]).cuda(), use_cache=False).logits[0, -8:]
    assert float((rows - right).norm() / right.norm()) < 4e-2


def test_greedy_and_sampled_rounds_agree_with_the_rule_on_the_host():
    from sled import acceptance

    target = graphed("llama")
    rng, paging = np.random.default_rng(3), Paging(target)
    for temperature in (0.0, 0.9):
        chunks, rounds = [], []
        for s in range(5):
            text = rng.integers(VOCAB, size=rng.integers(2, 90)).tolist()
            draft = tuple(rng.integers(VOCAB, size=rng.integers(0, 5)).tolist())
            name = f"{temperature} {s}"
            chunks.append(paging.chunk(name, [*text, *draft], 0, len(draft) + 1))
            rounds.append(RoundRows(draft, Sampling(temperature=temperature, seed=s), len(text)))
        logits = target._captured_logits(chunks).cpu().numpy()
        right = acceptance.decide(logits, rounds)
        found = target.verify(chunks, rounds)
        assert [(d.accepted, d.next_token) for d in found] == [(d.accepted, d.next_token) for d in right]


def test_rows_that_are_no_numbers_fail_their_round_alone():
    target = graphed("llama")
    with torch.no_grad():
        target.model.model.embed_tokens.weight[5] = float("nan")
    paging = Paging(target)
    chunks = [paging.chunk(0, [1, 2, 3], 0, 1), paging.chunk(1, [4, 5, 6], 0, 1)]
    rounds = [RoundRows((), Sampling(), 3), RoundRows((), Sampling(), 3)]
    assert [d.finite for d in target.verify(chunks, rounds)] == [True, False]
    sampled = [RoundRows((), Sampling(temperature=1.0), 3)] * 2
    assert [d.finite for d in target.verify(chunks, sampled)] == [True, False]
    assert [d.finite for d in target.verify(chunks[:1], rounds[:1])] == [True]


def test_long_text_is_divided_and_merged():
    plain, target = tiny("llama", max_position_embeddings=4096).cuda(), graphed("llama", max_position_embeddings=4096)
    text, paging = np.random.default_rng(4).integers(VOCAB, size=3000).tolist(), Paging(target)
    target._captured_logits([paging.chunk(0, text[:2999], 0, 1)])
    chunk = paging.chunk(0, text[2999:], 2999, 1)
    assert target.pack([chunk]).work[0].num_slots > 8
    rows = target._captured_logits([chunk]).cpu()
    with torch.inference_mode():
        right = plain(torch.tensor([text]).cuda(), use_cache=False).logits[0, -1:].cpu()
    torch.testing.assert_close(rows, right, atol=5e-4, rtol=1e-3)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_compute_what_one_does(tmp_path):
    """NCCL between the ranks, Triton attention over each one's heads; some transformers want an even vocabulary."""
    import json
    import subprocess
    import sys

    from sled.targets.causal_lm import CausalLMTarget
    from sled.types import Chunk
    from tests.sled.tiny_models import save_with_tokenizer
    from tests.sled.two_ranks import TEXT, answer

    save_with_tokenizer(tiny("llama", vocab_size=98), tmp_path)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "tests.sled.two_gpus"]
    ran = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, timeout=150, check=False)
    lines = [line for line in ran.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, ran.stdout + ran.stderr
    found = json.loads(lines[0].removeprefix("RESULT "))
    one = CausalLMTarget(tiny("llama", vocab_size=98).cuda(), FakeCodec(), name="one", kv_bytes=1 << 22)
    logits = one.logits([Chunk(b"a", tuple(TEXT), 0, 4, (3,)), Chunk(b"b", tuple(TEXT[:5]), 0, 2, (5,))])
    np.testing.assert_allclose(found["logits"], logits.cpu().numpy(), atol=2e-4)
    assert found["answer"] == answer(one, TEXT[:7], 12)
