"""The two decoders that bench.macro.decoder holds side by side, each in a process of its own.

Both take the same tokens, in the same pieces, and give logits; what is timed contains the choice of the largest, as
every caller needs it. llama.cpp is called through llama-cpp-python's low-level functions: its Python objects around
them would cost it time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

POSITIONS = 1024


class Engine(Protocol):
    """A loaded model with one sequence."""

    def clear(self) -> None:
        """Forget all tokens."""

    def logits(self, tokens: list[int], num_rows: int, num_threads: int) -> Any:
        """Take in tokens; logits (num_rows, vocab) after the last ones."""


class Edgekernels:
    """The decoder under test."""

    def __init__(self, path: str, activations: str = "int8") -> None:
        from edgekernels.decoder import load_decoder

        self.decoder = load_decoder(path, activations=activations)
        self.cache = self.decoder.new_cache(POSITIONS)

    def clear(self) -> None:
        self.cache.truncate(0)

    def logits(self, tokens: list[int], num_rows: int, num_threads: int) -> Any:
        return self.decoder.forward(tokens, self.cache, num_logits=num_rows, num_threads=num_threads)


class EdgekernelsFloat(Edgekernels):
    """With activations as they are: slower, and exact for the given weights."""

    def __init__(self, path: str) -> None:
        super().__init__(path, "float")


class LlamaCpp:
    """llama.cpp with its defaults: mapped weights, repacked where it can, attention as it chooses, a float16 cache."""

    def __init__(self, path: str) -> None:
        import ctypes

        import llama_cpp as cpp
        import numpy as np

        self.cpp, self.np = cpp, np
        self._quiet = cpp.llama_log_callback(lambda level, text, data: None)
        cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        cpp.llama_backend_init()
        self.model = cpp.llama_model_load_from_file(str(path).encode(), cpp.llama_model_default_params())
        params = cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = POSITIONS, 512, 512
        params.no_perf = True
        self.context = cpp.llama_init_from_model(self.model, params)
        if not self.model or not self.context:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        self.vocab_size = cpp.llama_vocab_n_tokens(cpp.llama_model_get_vocab(self.model))
        self.batch = cpp.llama_batch_init(512, 0, 1)
        self.past = 0

    def clear(self) -> None:
        self.cpp.llama_memory_clear(self.cpp.llama_get_memory(self.context), True)
        self.past = 0

    def logits(self, tokens: list[int], num_rows: int, num_threads: int) -> Any:
        batch, count = self.batch, len(tokens)
        for at, token in enumerate(tokens):
            batch.token[at], batch.pos[at], batch.n_seq_id[at] = token, self.past + at, 1
            batch.seq_id[at][0] = 0
            batch.logits[at] = at >= count - num_rows
        batch.n_tokens = count
        self.cpp.llama_set_n_threads(self.context, num_threads, num_threads)
        if status := self.cpp.llama_decode(self.context, batch):
            raise RuntimeError(f"llama_decode answered {status}")
        self.past += count
        found = self.cpp.llama_get_logits(self.context)
        return self.np.ctypeslib.as_array(found, shape=(num_rows, self.vocab_size))

    def tokenise(self, text: str) -> list[int]:
        """Token ids of a text, without any that begin or end it."""
        raw = text.encode()
        ids = (self.cpp.llama_token * len(raw))()
        vocab = self.cpp.llama_model_get_vocab(self.model)
        count = self.cpp.llama_tokenize(vocab, raw, len(raw), ids, len(raw), False, False)
        return list(ids[:count])


ENGINES: dict[str, Callable[[str], Any]] = {
    "edgekernels": Edgekernels,
    "edgekernels, float activations": EdgekernelsFloat,
    "llama.cpp": LlamaCpp,
}


def _memory_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) << 10
    return 0


class Worker:
    """What the parent may ask of one engine."""

    def __init__(self, engine: str, path: str) -> None:
        import numpy as np

        self.np = np
        before = _memory_bytes("VmRSS")
        started = time.perf_counter()
        self.engine = ENGINES[engine](path)
        loaded = time.perf_counter()
        self.engine.logits([1], 1, 2).argmax()
        self.begun = {
            "load_s": loaded - started,
            "load_and_first_token_s": time.perf_counter() - started,
            "rss_before_bytes": before,
        }

    def load(self) -> dict[str, Any]:
        """What loading took."""
        return self.begun

    def memory(self) -> dict[str, Any]:
        """The most memory so far, and how much of it is the file's own pages."""
        return {
            "peak_rss_bytes": _memory_bytes("VmHWM"),
            "rss_bytes": _memory_bytes("VmRSS"),
            "file_bytes": _memory_bytes("RssFile"),
        }

    def tokens(self, text: str) -> list[int]:
        """Token ids, of llama.cpp alone."""
        return list(self.engine.tokenise(text))

    def prefill(self, tokens: list[int], threads: int) -> dict[str, Any]:
        """Seconds to take in all tokens at once, with the logits of the last."""
        self.engine.clear()
        return self._timed(lambda: [int(self.engine.logits(tokens, 1, threads)[-1].argmax())])

    def decode(self, prompt: list[int], tokens: list[int], threads: int) -> dict[str, Any]:
        """Seconds to take in tokens one by one after a prompt, and the likeliest token after each."""
        self.engine.clear()
        self.engine.logits(prompt, 1, threads)
        return self._timed(lambda: [int(self.engine.logits([token], 1, threads)[0].argmax()) for token in tokens])

    def _timed(self, work: Callable[[], list[int]]) -> dict[str, Any]:
        from bench.others import Watch

        watch = Watch()
        started = time.perf_counter()
        chosen = work()
        return {"s": time.perf_counter() - started, "chosen": chosen, "others": watch.others_share()}

    def losses(self, tokens: list[int]) -> list[float]:
        """Minus the log-probability of every token but the first, given those before it."""
        np = self.np
        self.engine.clear()
        rows = self.engine.logits(tokens, len(tokens), 2)[:-1].astype(np.float64)
        rows -= rows.max(axis=1, keepdims=True)
        chosen = rows[np.arange(len(rows)), tokens[1:]]
        return [float(loss) for loss in np.log(np.exp(rows).sum(axis=1)) - chosen]


def serve(engine: str, path: str, connection: Connection) -> None:
    """A process of its own: answers (method, arguments) with (result, None) or (None, error) until told None."""
    try:
        worker = Worker(engine, path)
        connection.send((worker.load(), None))
    except Exception as error:
        connection.send((None, f"{type(error).__name__}: {error}"))
        return
    while (asked := connection.recv()) is not None:
        method, arguments = asked
        try:
            connection.send((getattr(worker, method)(*arguments), None))
        except Exception as error:
            connection.send((None, f"{type(error).__name__}: {error}"))
