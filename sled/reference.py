"""The target's own answer, computed by transformers alone: what our answers are held against.

Nothing of ours takes part but finding the file: transformers reads the weights, decodes and keeps its own cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from sled.targets.catalog import ModelFiles

TIE_MARGIN = 1e-3


@dataclass(frozen=True, slots=True)
class Comparison:
    """One answer held against the reference.

    `equal` is token by token. Where they differ, `position` is the first difference and `margin` the distance
    between the reference's own two largest logits there: under 1e-3 the difference is a numerical tie.
    """

    equal: bool
    position: int = -1
    margin: float = 0.0

    @property
    def tie(self) -> bool:
        return not self.equal and self.margin < TIE_MARGIN


class Reference:
    """transformers' own greedy `generate` in float32.

    Args:
        files: from `sled.targets.catalog.find_model`.
    """

    def __init__(self, files: ModelFiles) -> None:
        source: dict[str, Any] = {"gguf_file": files.path.name} if files.kind == "gguf" else {}
        directory = files.path.parent if files.kind == "gguf" else files.path
        self._model = AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, local_files_only=True, **source
        ).eval()

    @torch.inference_mode()
    def answer(self, prompt: Sequence[int], max_tokens: int) -> tuple[list[int], list[float]]:
        """Greedy answer (with its stop token) and, for every token, the margin between the two largest logits."""
        ids = torch.tensor([list(prompt)])
        out = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_tokens,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
        margins = []
        for row in out.logits:
            first, second = row[0].topk(2).values.tolist()
            margins.append(first - second)
        return out.sequences[0, len(prompt) :].tolist(), margins

    def compare(self, prompt: Sequence[int], tokens: Sequence[int], max_tokens: int) -> Comparison:
        """Hold an answer against ours-to-be: the reference's answer to the same prompt."""
        expected, margins = self.answer(prompt, max_tokens)
        return compare(tokens, expected, margins)


def compare(tokens: Sequence[int], expected: Sequence[int], margins: Sequence[float]) -> Comparison:
    """Hold tokens against an expected answer and its margins.

    >>> compare([1, 2], [1, 2], [5.0, 5.0]).equal
    True
    >>> compare([1, 3], [1, 2], [5.0, 0.0004]).tie
    True
    """
    for position, (ours, theirs) in enumerate(zip(tokens, expected, strict=False)):
        if ours != theirs:
            return Comparison(False, position, margins[position])
    if len(tokens) != len(expected):
        return Comparison(False, min(len(tokens), len(expected)), float("inf"))
    return Comparison(True)
