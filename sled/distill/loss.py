"""KL growing into total variation, a chunk of positions at a time: logits of a whole batch never exist.

With p the target's law over the student's ids and q the student's, a position's loss is
(1 - s) KL(p || q) + s TV(p, q). Total variation is what rejection costs: 1 - TV is the acceptance rate; KL leads there
from afar. The gradients are worked out by hand beside the loss, so that nothing of the chunk is kept.

Source: DistillSpec (arXiv 2310.08461) for the divergences; acceptance as 1 - TV: Leviathan et al. (arXiv 2211.17192).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

Tensor = Any  # torch.Tensor
Chunk = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]
_CHUNK_LOGITS = {"cpu": 1 << 23}
_LOGITS = 1 << 27


def chunk_loss(
    hidden: Tensor, head: Tensor, target: Tensor, weights: Tensor, share: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss of a chunk and its gradients.

    Args:
        hidden: the student's (n, width).
        head: its matrix (vocab, width), of the same dtype.
        target: the target's logits (n, vocab) of the same ids.
        weights: of the positions, float32 (n,).
        share: of total variation, 0 .. 1, a scalar tensor.

    Returns:
        sum of weighted KL, sum of weighted TV, gradient of (1 - share) KL + share TV by hidden and by head.
    """
    log_q = functional.log_softmax((hidden @ head.T).float(), dim=-1)
    log_p = functional.log_softmax(target.float(), dim=-1)
    p, q = log_p.exp(), log_q.exp()
    kl = torch.where(p > 0, p * (log_p - log_q), 0.0).sum(dim=-1)
    difference = q - p
    tv = 0.5 * difference.abs().sum(dim=-1)
    slope = 0.5 * difference.sign()
    gradient = (1 - share) * difference + share * q * (slope - (q * slope).sum(dim=-1, keepdim=True))
    gradient = (gradient * weights[:, None]).to(hidden.dtype)
    return (weights * kl).sum(), (weights * tv).sum(), gradient @ head, gradient.T @ hidden


class ChunkedLoss(torch.autograd.Function):
    """The loss over all positions, its gradients made on the way."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        target_hidden: Tensor,
        target_head: Callable[[Tensor], Tensor],
        weights: Tensor,
        share: Tensor,
        size: int,
        compute: Chunk,
    ) -> tuple[Tensor, Tensor, Tensor]:
        by_hidden = torch.empty_like(hidden)
        by_head = torch.zeros(head.shape, dtype=torch.float32, device=head.device)
        sums = torch.zeros(2, device=head.device)
        cast = head.to(hidden.dtype)
        for at in range(0, len(hidden), size):
            part = slice(at, at + size)
            target = target_head(target_hidden[part])
            kl, tv, chunk_hidden, chunk_head = compute(hidden[part], cast, target, weights[part], share)
            sums[0] += kl
            sums[1] += tv
            by_hidden[part] = chunk_hidden
            by_head += chunk_head
        ctx.save_for_backward(by_hidden, by_head)
        loss = (1 - share) * sums[0] + share * sums[1]
        ctx.mark_non_differentiable(kl_all := sums[0].clone(), tv_all := sums[1].clone())
        return loss, kl_all, tv_all

    @staticmethod
    def backward(ctx: Any, by_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        by_hidden, by_head = ctx.saved_tensors
        return by_hidden * by_loss.to(by_hidden.dtype), by_head * by_loss, None, None, None, None, None, None


def distillation_loss(
    hidden: Tensor,
    head: Tensor,
    target_hidden: Tensor,
    target_head: Callable[[Tensor], Tensor],
    *,
    weights: Tensor,
    share: Tensor,
    size: int,
    compute: Chunk = chunk_loss,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of a batch, differentiable by `hidden` and `head`; and its KL and TV alone.

    Args:
        hidden: the student's (n, width).
        head: its matrix (vocab, width).
        target_hidden: the target's (n, its width).
        target_head: hidden states to the target's logits of the student's ids.
        weights: of the positions, float32 (n,), adding up to 1.
        share: of total variation, a scalar tensor.
        size: positions whose logits exist at once.
        compute: `chunk_loss`, or a compiled one.
    """
    loss, kl, tv = ChunkedLoss.apply(hidden, head, target_hidden, target_head, weights, share, size, compute)
    return loss, kl, tv


def chunk_size(vocab: int, device: Any) -> int:
    """Positions whose logits may exist at once, a power of two."""
    logits = _CHUNK_LOGITS.get(device.type, _LOGITS)
    return 1 << max(4, (logits // vocab).bit_length() - 1)
