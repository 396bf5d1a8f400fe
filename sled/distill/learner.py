"""A student with its vocabulary: how it begins, how it reads the target's ids, and what of the target it is held to."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sled.distill.corpus import Rows, most_used
from sled.distill.shapes import Shape
from sled.distill.student import Student
from sled.distill.teacher import Head, Teacher, model_ties

Tensor = Any  # torch.Tensor
_SPREAD = 0.04  # of an embedding's entries; what suits a norm behind it and a tied head


class Learner:
    """A student that learns from a teacher.

    Args:
        name: of the student.
        shape: of it; a vocabulary smaller than the target's becomes its own.
        teacher: the target.
        rows: of the corpus, which say what ids the target uses.
        length: tokens of a text.

    Attributes:
        target_ids: int64 (vocab,), the target's id of each own one; None where they are the same.
        coverage: share of what the target wrote that its vocabulary has.
    """

    def __init__(self, name: str, shape: Shape, teacher: Teacher, rows: Rows, length: int) -> None:
        self.name, self.shape, self.teacher = name, shape, teacher
        device = teacher.device
        kept = np.array(sorted(i for i in teacher.codec.stop_ids if i < teacher.num_ids), np.int64)
        everything = shape.vocab >= teacher.num_ids
        chosen = np.arange(teacher.num_ids) if everything else most_used(rows, teacher.num_ids, shape.vocab, kept)
        self.student = _begun(shape, teacher, chosen, rows, length).to(device)
        self.ids = torch.from_numpy(chosen).to(device)
        self.target_ids: NDArray[np.int64] | None = None if everything else chosen
        own = torch.zeros(teacher.vocab_size, dtype=torch.long)  # what it does not have is read as its first id
        own[chosen] = torch.arange(len(chosen))
        has = torch.zeros(teacher.vocab_size, dtype=torch.bool)
        has[chosen] = True
        written = rows.tokens[rows.written].astype(np.int64)
        self.coverage = float(has.numpy()[written].mean()) if len(written) else 0.0
        self.own, self.has = own.to(device), has.to(device)
        self.head = Head(teacher.model, None if everything and teacher.num_ids == teacher.vocab_size else self.ids)

    def hidden(self, tokens: Tensor) -> Tensor:
        """The student's hidden states of texts (rows, tokens) in the target's ids; bfloat16 where the target's are."""
        kind = self.teacher.device.type
        with torch.autocast(kind, torch.bfloat16, enabled=self.teacher.dtype == torch.bfloat16):
            return self.student.hidden(self.own[tokens])


@torch.no_grad()
def _begun(shape: Shape, teacher: Teacher, chosen: NDArray[np.int64], rows: Rows, length: int) -> Student:
    """A student with an embedding, and layers if it is to keep some, of the target."""
    student = Student(shape, length)
    model = teacher.model
    embedding = model.get_input_embeddings().weight[torch.from_numpy(chosen).to(teacher.device)].float().cpu()
    head = model.get_output_embeddings().weight[torch.from_numpy(chosen).to(teacher.device)].float().cpu()
    if shape.kept:
        weights = {name: weight.float().cpu() for name, weight in model.state_dict().items()}
        student.take_layers(weights, shape.kept)
        student.embedding.copy_(embedding)
        if student.unembedding is not None:
            student.unembedding.copy_(head)
        return student
    uses = np.bincount(rows.tokens[rows.written].astype(np.int64), minlength=teacher.vocab_size)[chosen]
    source = embedding if model_ties(model) else head
    student.embedding.copy_(low_rank(source, torch.from_numpy(uses).float(), shape.width))
    return student


def low_rank(embedding: Tensor, uses: Tensor, width: int) -> Tensor:
    """An embedding in fewer dimensions: those in which the tokens that are used differ most.

    Args:
        embedding: (vocab, any width).
        uses: (vocab,), how often each is used.
        width: wanted; dimensions beyond the embedding's own are left small and random.
    """
    weights = uses.sqrt().clamp_min(0.1)[:, None]
    weighted = embedding * weights
    _, _, directions = torch.linalg.svd((weighted.T @ weighted).double())
    placed = embedding @ directions[:width].float().T
    placed = placed / placed.norm(dim=-1).mean().clamp_min(1e-9) * (_SPREAD * width**0.5)
    if placed.shape[1] < width:
        rest = torch.randn(len(placed), width - placed.shape[1]) * (_SPREAD / 4)
        placed = torch.cat([placed, rest], dim=1)
    return placed
