"""What clients are told: OpenAI's objects out of tokens and counts.

Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec

from sled.stats import Stats
from sled.types import Logprob, Token

Kind = Literal["chat", "text"]
Pieces = Callable[[int], bytes]

_LEAST = -9999.0  # what OpenAI writes for a probability of nothing
_OBJECTS = {
    ("chat", False): "chat.completion",
    ("chat", True): "chat.completion.chunk",
    ("text", False): "text_completion",
    ("text", True): "text_completion",
}


class Usage(msgspec.Struct):
    """Tokens of a request, added up over its answers."""

    prompt: int = 0
    completion: int = 0
    accepted: int = 0
    drafted: int = 0

    def add(self, num_prompt: int, num_tokens: int, stats: Stats) -> None:
        """Count one answer."""
        self.prompt += num_prompt
        self.completion += num_tokens
        self.accepted += stats.accepted
        self.drafted += stats.drafted

    def told(self) -> dict[str, Any]:
        """As clients read it: what the drafter predicted counts as predictions."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": 0,
                "audio_tokens": 0,
                "accepted_prediction_tokens": self.accepted,
                "rejected_prediction_tokens": self.drafted - self.accepted,
            },
        }


class Writer:
    """Writes the objects of one reply.

    Args:
        kind: chat, or text completion.
        reply_id: random characters.
        created: seconds since 1970.
        model: what answers.
        target_id: of the target: answers with the same fingerprint and seed are the same.
        pieces: the bytes a token stands for; of control tokens none.
    """

    def __init__(
        self,
        kind: Kind,
        *,
        reply_id: str,
        created: int,
        model: str,
        target_id: bytes,
        pieces: Pieces,
    ) -> None:
        self._kind, self._pieces = kind, pieces
        self._head = {
            "id": f"{'chatcmpl' if kind == 'chat' else 'cmpl'}-{reply_id}",
            "created": created,
            "model": model,
            "system_fingerprint": f"sled_{target_id.hex()}",
        }

    def whole(self, choices: Sequence[dict[str, Any]], usage: Usage, seed: int) -> dict[str, Any]:
        """The reply that is not streamed; `sled` in it is no field of OpenAI's."""
        return {**self._of(streamed=False), "choices": list(choices), "usage": usage.told(), "sled": {"seed": seed}}

    def chunk(self, choices: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """A piece of a stream."""
        return {**self._of(streamed=True), "choices": list(choices)}

    def usage_chunk(self, usage: Usage, seed: int) -> dict[str, Any]:
        """The last piece of a stream, if usage was asked for."""
        return {**self.chunk([]), "usage": usage.told(), "sled": {"seed": seed}}

    def _of(self, *, streamed: bool) -> dict[str, Any]:
        return {**self._head, "object": _OBJECTS[self._kind, streamed]}

    def choice(self, index: int, text: str, reason: str, tokens: Sequence[Token], *, logprobs: bool) -> dict[str, Any]:
        """A whole answer."""
        told = self.logprobs(tokens, 0) if logprobs else None
        if self._kind == "chat":
            message = {"role": "assistant", "content": text, "refusal": None}
            return {"index": index, "message": message, "logprobs": told, "finish_reason": reason}
        return {"index": index, "text": text, "logprobs": told, "finish_reason": reason}

    def delta(
        self,
        index: int,
        text: str,
        tokens: Sequence[Token] = (),
        *,
        logprobs: bool = False,
        offset: int = 0,
        first: bool = False,
        reason: str | None = None,
    ) -> dict[str, Any]:
        """A piece of an answer; `offset` is where its text begins in the answer's."""
        told = self.logprobs(tokens, offset) if logprobs and tokens else None
        if self._kind == "chat":
            delta = {"role": "assistant", "content": "", "refusal": None} if first else {"content": text}
            return {"index": index, "delta": {} if reason else delta, "logprobs": told, "finish_reason": reason}
        return {"index": index, "text": text, "logprobs": told, "finish_reason": reason}

    def logprobs(self, tokens: Sequence[Token], offset: int) -> dict[str, Any]:
        """Log-probabilities in the form of the kind; control tokens, such as the one that ends an answer, have none."""
        spoken = [(token, token.logprob) for token in tokens if token.logprob is not None and self._pieces(token.id)]
        if self._kind == "chat":
            return {"content": [self._chat_logprob(token, logprob) for token, logprob in spoken], "refusal": None}
        texts, offsets = [self._text(token.id) for token, _ in spoken], []
        for text in texts:
            offsets.append(offset)
            offset += len(text)
        return {
            "tokens": texts,
            "token_logprobs": [_bounded(logprob.value) for _, logprob in spoken],
            "top_logprobs": [{self._text(id_): _bounded(p) for id_, p in logprob.top} for _, logprob in spoken],
            "text_offset": offsets,
        }

    def _chat_logprob(self, token: Token, logprob: Logprob) -> dict[str, Any]:
        return {
            **self._token(token.id, logprob.value),
            "top_logprobs": [self._token(id_, value) for id_, value in logprob.top],
        }

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        piece = self._pieces(token)
        return {"token": self._text(token), "logprob": _bounded(logprob), "bytes": list(piece)}

    def _text(self, token: int) -> str:
        return self._pieces(token).decode("utf-8", "replace") or f"<|{token}|>"


def sse(value: Any) -> bytes:
    """One event of a stream."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": waiting\n\n"


def _bounded(value: float) -> float:
    return value if value > _LEAST else _LEAST
