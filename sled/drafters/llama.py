"""GGUF models of any family on llama.cpp (extra `llama`), as language models whose cache rolls back."""

from __future__ import annotations

import ctypes
import importlib
import logging
import weakref
from pathlib import Path
from typing import Any

import numpy as np
from edgekernels.decoder.model import processors
from numpy.typing import NDArray

from sled.errors import UnknownModel

_BATCH = 512  # tokens of one call
_MOST_POSITIONS = 8192
_SEQUENCE = 0
_WARNING = 3  # ggml's levels: 1 debug, 2 info, 3 warning, 4 error
log = logging.getLogger("sled.drafters.llama")
_kept: list[Any] = []  # callbacks that C holds


class LlamaError(RuntimeError):
    """llama.cpp could not compute."""


def loaded_bindings() -> Any:
    """llama-cpp-python's bindings.

    Raises:
        UnknownModel: it is not installed, or its shared library does not load here.
    """
    try:
        found = importlib.import_module("llama_cpp")
    except ModuleNotFoundError as error:
        raise UnknownModel(f"llama.cpp needs {error.name}: pip install 'edgebus[llama]'") from None
    except (OSError, RuntimeError) as error:
        raise UnknownModel(f"llama-cpp-python does not load here ({error}); build it for this machine") from None
    if not _kept:
        _kept.append(found.llama_log_callback(_log))
        found.llama_log_set(_kept[0], ctypes.c_void_p(0))
    return found


def _log(level: int, text: bytes, data: Any) -> None:
    if level >= _WARNING:
        log.debug("%s", text.decode(errors="replace").rstrip())


class LlamaModel:
    """A model of llama.cpp with one sequence, as a `LanguageModel`.

    Args:
        path: the GGUF file.
        positions: tokens it should have room for; the model may know fewer.
        threads: for each forward; 0 takes all processors.
        bindings: of llama.cpp; None imports them.

    Raises:
        UnknownModel: llama.cpp is not there, or cannot load the file.
    """

    def __init__(self, path: Path, positions: int, threads: int = 0, bindings: Any = None) -> None:
        self._c = c = bindings or loaded_bindings()
        c.llama_backend_init()
        self._model = c.llama_model_load_from_file(str(path).encode(), c.llama_model_default_params())
        if not self._model:
            raise UnknownModel(f"llama.cpp cannot load {path}; give a GGUF file of a family that it knows")
        settings = c.llama_context_default_params()
        self.max_positions = min(positions, int(c.llama_model_n_ctx_train(self._model)), _MOST_POSITIONS)
        settings.n_ctx, settings.n_batch, settings.n_ubatch = self.max_positions, _BATCH, _BATCH
        settings.n_threads = settings.n_threads_batch = threads or processors()
        self._context = c.llama_init_from_model(self._model, settings)
        if not self._context:
            c.llama_model_free(self._model)
            raise UnknownModel(f"llama.cpp has no memory for {self.max_positions} positions of {path}")
        weakref.finalize(self, _free, c, self._context, self._model)
        self._memory = c.llama_get_memory(self._context)
        self.vocab_size = int(c.llama_vocab_n_tokens(c.llama_model_get_vocab(self._model)))
        self._ids: list[int] = []

    def read(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """See LanguageModel.

        Raises:
            LlamaError: llama.cpp could not compute them.
        """
        for at in range(0, len(ids), _BATCH):
            part = ids[at : at + _BATCH].tolist()
            tokens = (ctypes.c_int32 * len(part))(*part)
            status = self._c.llama_decode(self._context, self._c.llama_batch_get_one(tokens, len(part)))
            if status != 0:
                raise LlamaError(f"llama_decode gave {status} for {len(part)} tokens behind {len(self._ids)}")
            self._ids += part
        row = self._c.llama_get_logits_ith(self._context, -1)
        if not row:
            raise LlamaError("llama.cpp gave no logits")
        return np.ctypeslib.as_array(row, (self.vocab_size,)).astype(np.float32)[None]

    def forget(self, length: int) -> None:
        """See LanguageModel; a model that cannot give up the end of its state reads what is kept again.

        Raises:
            LlamaError: llama.cpp could not compute them.
        """
        kept = self._ids[:length]
        if length and self._c.llama_memory_seq_rm(self._memory, _SEQUENCE, length, -1):
            self._ids = kept
            return
        self._c.llama_memory_seq_rm(self._memory, -1, -1, -1)
        self._ids = []
        if kept:
            self.read(np.array(kept))


def _free(bindings: Any, context: Any, model: Any) -> None:
    bindings.llama_free(context)
    bindings.llama_model_free(model)
