"""transformers' assisted generation and prompt lookup, target and drafter in one process: no link between them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from edgekernels.gguf import GgufFile
from torch import nn

from bench.macro.serving.worker import answer_lines
from sled.drafters.own_ids import map_of
from sled.targets.catalog import find_model
from sled.targets.gguf_llama import load_gguf_llama

NEVER = -1e9


class _Read(nn.Module):
    """Embeds the target's ids: those the drafter lacks as its token 0."""

    def __init__(self, embed: nn.Embedding, ids: torch.Tensor, vocab_size: int) -> None:
        super().__init__()
        self.embed = embed
        self.own = torch.zeros(vocab_size, dtype=torch.long)
        self.own[ids] = torch.arange(len(ids))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """See nn.Embedding."""
        return self.embed(self.own[tokens])


class _Say(nn.Module):
    """Logits over the target's ids: those the drafter lacks are never said."""

    def __init__(self, head: nn.Module, ids: torch.Tensor, vocab_size: int) -> None:
        super().__init__()
        self.head, self.ids, self.vocab_size = head, ids, vocab_size

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """See nn.Linear."""
        logits = self.head(hidden)
        out = logits.new_full((*logits.shape[:-1], self.vocab_size), NEVER)
        out[..., self.ids] = logits
        return out


def widen(drafter: Any, ids: torch.Tensor, vocab_size: int) -> Any:
    """The drafter with the target's vocabulary, which transformers insists on."""
    drafter.set_input_embeddings(_Read(drafter.get_input_embeddings(), ids, vocab_size))
    drafter.lm_head = _Say(drafter.lm_head, ids, vocab_size)
    drafter.config.vocab_size = vocab_size
    return drafter


class Peer:
    """Both models, and ways to generate with them."""

    def handle(self, message: dict[str, Any]) -> dict[str, Any]:
        """`connect` or `answer`."""
        do = message.pop("do")
        return self._load(**message) if do == "connect" else self._answer(**message)

    def _load(self, model: str, drafter: str, threads: int) -> dict[str, Any]:
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self._target, codec = load_gguf_llama(find_model(model).path, torch.float32)
        small, _ = load_gguf_llama(Path(drafter), torch.float32)
        with GgufFile(Path(drafter)) as file:
            ids = map_of(file.metadata)
        assert codec is not None
        assert ids is not None
        self._drafter = widen(small, torch.from_numpy(ids).long(), self._target.config.vocab_size)
        self._stop = codec.stop_ids
        self._options: dict[str, dict[str, Any]] = {
            "plain": {},
            "assisted": {"assistant_model": self._drafter},
            "prompt lookup": {"prompt_lookup_num_tokens": 8},
        }
        return {"ways": list(self._options)}

    def _answer(self, way: str, prompt: list[int], max_tokens: int) -> dict[str, Any]:
        from transformers import StoppingCriteria

        times: list[tuple[float, int]] = []

        class Note(StoppingCriteria):
            """Notes when there were how many tokens."""

            def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
                times.append((time.perf_counter(), input_ids.shape[1] - len(prompt)))
                return torch.zeros(input_ids.shape[0], dtype=torch.bool)

        began, text = time.perf_counter(), torch.tensor([prompt])
        out = self._target.generate(
            text,
            attention_mask=torch.ones_like(text),
            max_new_tokens=max_tokens,
            do_sample=False,
            eos_token_id=list(self._stop),
            pad_token_id=self._stop[0],
            stopping_criteria=[Note()],
            **self._options[way],
        )
        ended = time.perf_counter()
        first_at, first = times[0]
        tokens = out[0, len(prompt) :].tolist()
        return {
            "tokens": tokens,
            "wall_s": ended - began,
            "paced_tokens": len(tokens) - first,
            "paced_s": times[-1][0] - first_at,
        }


if __name__ == "__main__":
    answer_lines(Peer().handle)
