"""transformers' continuous batching on the CPU, with its sessions in the same process: no wire between them."""

from __future__ import annotations

import queue
import time
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

from bench.macro.serving.cells import MAX_TOKENS, asks
from bench.macro.serving.worker import answer_lines
from sled.swarm.account import Arrival, Asked, Record
from sled.targets.catalog import find_model
from sled.targets.gguf_llama import load_gguf_llama

PAGE_TOKENS = 256
BATCH_TOKENS = 512


class Peer:
    """A model and its manager, which runs for one turn.

    Args:
        model: as `sled serve` takes it.
        prompts: token ids.
        threads: of torch.
        attention: sdpa or paged|eager, what there is without flash attention.
    """

    def __init__(self, model: str, prompts: list[list[int]], threads: int, attention: str) -> None:
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self._model, codec = load_gguf_llama(find_model(model).path, torch.float32)
        self._model.set_attn_implementation(attention)
        self._prompts = prompts
        self._config = GenerationConfig(max_new_tokens=MAX_TOKENS, do_sample=False, eos_token_id=codec.stop_ids)

    def turn(self, *, sessions: int, window_s: float, limit_s: float) -> dict[str, Any]:
        """One turn of the closed loop; see `loop.drive`."""
        limits = ContinuousBatchingConfig(
            page_size=PAGE_TOKENS,
            num_blocks=2 * sessions + 8,
            max_batch_tokens=BATCH_TOKENS,
            max_requests_per_batch=max(sessions, 2),
            allow_block_sharing=False,  # prompts are shorter than a page: nothing to share
        )
        manager = self._model.init_continuous_batching(
            generation_config=self._config, continuous_batching_config=limits
        )
        manager.start()
        try:
            return {"record": _Loop(manager, self._prompts, sessions).run(window_s, limit_s)}
        finally:
            manager.stop(block=True, hard_stop=True)


class _Loop:
    """The closed loop over a running manager."""

    def __init__(self, manager: Any, prompts: list[list[int]], sessions: int) -> None:
        self._manager, self._prompts = manager, prompts
        self._asks = [enumerate(asks(session, sessions, len(prompts))) for session in range(sessions)]
        self._running: dict[str, tuple[int, int]] = {}
        self._waiting = set(range(sessions))
        self._record = Record(sessions, [], [], 0.0)
        self._began = time.perf_counter()

    def run(self, window_s: float, limit_s: float) -> Record:
        record, results = self._record, self._manager.output_router.output_queue
        for session in range(record.sessions):
            self._ask(session)
        until = limit_s
        while (left := until - self._now()) > 0:
            try:
                output = results.get(timeout=min(left, 1.0))
            except queue.Empty:
                if not self._manager.is_running():
                    raise RuntimeError("the manager's thread has ended") from None
                continue
            if output.error:
                raise RuntimeError(f"transformers: {output.error}")
            self._take(output)
            if not self._waiting and until == limit_s:
                until = min(limit_s, self._now() + window_s)
        record.end_s = self._now()
        return record

    def _now(self) -> float:
        return time.perf_counter() - self._began

    def _ask(self, session: int) -> None:
        answer, (prompt, wanted) = next(self._asks[session])
        name = f"{session}-{answer}"
        self._running[name] = (session, answer)
        self._record.asked.append(Asked(session, answer, self._now()))
        self._manager.add_request(self._prompts[prompt], name, max_new_tokens=wanted, streaming=True)

    def _take(self, output: Any) -> None:
        session, answer = self._running[output.request_id]
        self._record.arrivals.append(Arrival(session, answer, self._now(), 1))
        self._waiting.discard(session)
        if output.is_finished():
            del self._running[output.request_id]
            self._ask(session)


class _Handler:
    """What the benchmark may ask of this process."""

    def __init__(self) -> None:
        self._peer: Peer | None = None

    def __call__(self, message: dict[str, Any]) -> Any:
        return getattr(self, message.pop("do"))(**message)

    def connect(self, **what: Any) -> dict[str, Any]:
        self._peer = Peer(**what)
        return {}

    def turn(self, **turn: Any) -> dict[str, Any]:
        assert self._peer is not None
        return self._peer.turn(**turn)


if __name__ == "__main__":
    answer_lines(_Handler())
