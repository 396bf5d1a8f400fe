"""Any causal language model of transformers as a target."""

from __future__ import annotations

import hashlib
import inspect
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from sled.acceptance import Decision, RoundRows
from sled.errors import OutOfMemory, TargetLost
from sled.messages import MAX_WINDOW
from sled.targets import pool
from sled.targets.backends import choose_backend, has_triton
from sled.targets.catalog import ModelFiles
from sled.targets.decide import decide
from sled.targets.describing import describe, sayable, shape_of
from sled.targets.layout import Layout, check_rounds, lay_out
from sled.targets.loading import load_model
from sled.targets.packed import pack
from sled.targets.probe import Probe, check_kind, check_windows, max_positions
from sled.targets.room import insist_on_pages
from sled.targets.text import TextCodec
from sled.types import Chunk
from sled.vocabulary import vocabulary_hash

__all__ = ["CausalLMTarget", "load_target"]


class CausalLMTarget:
    """A transformers model that computes ragged batches over pages of keys and values.

    Args:
        model: a causal language model on its device.
        codec: its tokenizer.
        name: what devices are told.
        max_window: drafts per round that devices may send, at most 64.
        kv_bytes: memory for keys and values; None takes a share of what is free.
        page_tokens: positions in a page; None takes what suits the device.
        attention: how to attend, see `backends.choose_backend`.

    Raises:
        UnknownModel: it computes something besides plain attention.
        ParameterError: an attention that does not run here.
        OutOfMemory: no room for `kv_bytes`.
    """

    engine = "torch"

    def __init__(
        self,
        model: Any,
        codec: TextCodec,
        *,
        name: str,
        max_window: int = 16,
        kv_bytes: int | None = None,
        page_tokens: int | None = None,
        attention: str = "auto",
    ) -> None:
        assert 0 <= max_window <= MAX_WINDOW
        check_kind(model)
        vocab_size = model.config.get_text_config().vocab_size
        self.vocabulary, stop_ids = sayable(vocab_size, codec.vocabulary(), codec.stop_ids)
        self.model, self.codec = model.eval(), codec
        layers = pool.find_layers(model)
        check_windows(model, layers)
        probe = Probe(model, layers)
        page_tokens = page_tokens or pool.page_tokens_of(model.device)
        self._backend: Any = choose_backend(attention, model.device, layers, page_tokens)
        self._takes_rows = "logits_to_keep" in inspect.signature(model.forward).parameters
        num_pages = self._agree(pool.num_pages_of(layers, page_tokens, kv_bytes, model.device))
        size = pool.page_bytes(layers, page_tokens)
        insist_on_pages(num_pages, probe.num_pages(page_tokens), size)
        pool.hang_pools(model, layers, num_pages, page_tokens, self._backend)
        self.described = describe(
            self.vocabulary,
            stop_ids,
            _target_id(model, vocabulary_hash(self.vocabulary)),
            name=name,
            dtype=str(model.dtype).removeprefix("torch."),
            vocab_size=vocab_size,
            max_positions=max_positions(model),
            max_window=max_window,
        )
        self.shape = shape_of(
            self.described, self.vocabulary, page_tokens=page_tokens, num_pages=num_pages, page_bytes=size
        )
        self._layers, self._probe = layers, probe
        probe.check(self.logits, page_tokens)

    @property
    def num_threads(self) -> int:
        """Threads it computes on, where that is a CPU."""
        return int(torch.get_num_threads())

    def verify(self, chunks: Sequence[Chunk], rounds: Sequence[RoundRows]) -> list[Decision]:
        """See `sled.targets.Target.verify`."""
        check_rounds(chunks, rounds)
        with memory_given_back(self.model.device), torch.inference_mode():
            decisions = decide(self.logits(chunks), rounds)
            finish(self.model.device, rounds)
            return decisions

    def logits(self, chunks: Sequence[Chunk]) -> Tensor:
        """Logits (rows, vocab), `num_logits` rows per chunk in order."""
        with on_device(self.model.device), torch.inference_mode():
            layout = lay_out(chunks, page_tokens=self.shape.page_tokens, num_pages=self.shape.num_pages)
            return self._forward(layout)

    def _agree(self, num_pages: int) -> int:
        """The number of pages, where several processes must have the same."""
        return num_pages

    def _forward(self, layout: Layout) -> Tensor:
        packed = pack(layout, self.model.device)
        keep = {"logits_to_keep": packed.rows} if self._takes_rows else {}
        logits: Tensor = self.model(
            input_ids=packed.tokens,
            position_ids=packed.positions,
            use_cache=False,
            sled_plan=self._backend.plan(layout, packed),
            **keep,
        ).logits[0]
        return logits if keep else logits[packed.rows]


@contextmanager
def memory_given_back(device: torch.device) -> Iterator[None]:
    """Turn running out of memory, which comes in several ways, into `OutOfMemory`, and free what was in the making.

    Raises:
        OutOfMemory: the device had no room.
        TargetLost: a fault after which CUDA computes nothing more in this process.
    """
    try:
        yield
        return
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        text = str(error).lower()
        if "cuda error" in text and any(sign in text for sign in _NO_MORE):
            raise TargetLost(f"{device} has failed ({text.splitlines()[0]}); start the server again") from error
        if not isinstance(error, MemoryError) and not any(sign in text for sign in _NO_MEMORY):
            raise
        traceback.clear_frames(error.__traceback__)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    raise OutOfMemory("the target's device has no memory for this batch; lower batch_tokens, or kv_bytes of the target")


def on_device(device: torch.device) -> Any:
    """A context in which a CUDA device is the current one: kernels and graphs of others than torch go there."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def finish(device: torch.device, rounds: Sequence[RoundRows]) -> None:
    """Wait for a forward of which nobody reads a result: its time and its faults are its own, not the next one's."""
    if device.type == "cuda" and not rounds:
        torch.cuda.synchronize(device)


_NO_MORE = ("illegal", "misaligned", "assert", "unspecified launch failure", "uncorrectable", "hardware", "timed out")
_NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory")


def _target_id(model: Any, vocab_hash: bytes) -> bytes:
    """16 bytes that differ where the vocabulary, the arithmetic or (a sample of) the weights do."""
    digest = hashlib.blake2b(vocab_hash + str(model.dtype).encode(), digest_size=16)
    for name, weight in model.named_parameters():
        own = weight.to_local() if hasattr(weight, "to_local") else weight  # of a divided model, this rank's part
        own = own.dequantize() if is_traceable_wrapper_subclass(own) else own
        flat = own.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // 997)].float().cpu().numpy()
        digest.update(name.encode() + str(tuple(weight.shape)).encode() + sample.tobytes())
    return digest.digest()


def load_target(
    files: ModelFiles,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    max_window: int = 16,
    kv_bytes: int | None = None,
    page_tokens: int | None = None,
    attention: str = "auto",
    progress: Callable[[float], None] | None = None,
) -> CausalLMTarget:
    """Load a target from a GGUF file or a model directory; on CUDA, with Triton, one with captured graphs.

    Args:
        files: from `catalog.find_model`.
        dtype: float32 (exact), bfloat16, or float16 (on CUDA).
        device: "cpu", "cuda", "cuda:1", ...
        max_window: drafts per round that devices may send.
        kv_bytes: memory for keys and values; None takes a share of what is free.
        page_tokens: positions in a page; None takes what suits the device.
        attention: "auto", "torch", "cpu" or "triton", see `backends.choose_backend`.
        progress: called with the share done, 0 .. 1.

    Raises:
        UnknownModel: the files hold no model we can load.
        ParameterError: no such dtype, device or attention here.
        OutOfMemory: the device has no room for it.
    """
    model, codec = load_model(files, dtype=dtype, device=device, progress=progress)
    kind = CausalLMTarget
    if model.device.type == "cuda" and attention in ("auto", "triton") and has_triton():
        from sled.targets.graphed import GraphedTarget

        kind = GraphedTarget
    return kind(
        model,
        codec,
        name=files.name,
        max_window=max_window,
        kv_bytes=kv_bytes,
        page_tokens=page_tokens,
        attention=attention,
    )
