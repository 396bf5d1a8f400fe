"""The device's shell: a drafter, a link to the server, and the generation machine between them."""

from __future__ import annotations

import codecs
import contextlib
import secrets
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import msgspec

import edgebus
from edgebus.files import cache_dir as default_cache_dir
from edgebus.payloads import Payload, decode, encode
from sled import messages
from sled.device import Committed, Generation, State
from sled.drafters import Drafter, open_drafter
from sled.errors import (
    AnswerIncomplete,
    ParameterError,
    PromptTooLong,
    ProtocolError,
    ServerBusy,
    SessionUnknown,
    StaleBase,
    TargetChanged,
)
from sled.messages import Close, Described, Opened, Verdict, Vocabulary
from sled.stats import Stats, summarise
from sled.types import FinishReason, Sampling, Token
from sled.vocabulary import VocabularyCache
from sled.window import Window

_M = TypeVar("_M", bound=Payload)
MAX_TIMEOUT_S = 86_400.0


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A finished generation; `tokens` end with the stop token when `finish_reason` is "stop", `text` does not."""

    text: str
    tokens: list[int]
    prompt_tokens: list[int]
    finish_reason: FinishReason
    stats: Stats


class Device:
    """A device that drafts with a small model and has a server's target decide.

    Args:
        server: endpoint, e.g. "tcp://10.0.0.5:5555".
        server_key: the server's public key, a file or the 40 characters; None only with `insecure`.
        keys: directory with this device's keys (`edgebus keygen`); None only with `insecure`.
        drafter: "none", "ngram", "smollm2-12m", a .gguf file, a model directory, or a `Drafter` of your own;
            "torch:" before a name or path has torch run the model.
        threads: CPU threads for a model drafter; 0 lets it decide (the native decoder takes 1).
        insecure: no encryption and no authentication, said explicitly.
        timeout_s: how long to wait for the server, for the connection and for each round.
        cache_dir: where the target's vocabulary is kept; default is `~/.cache/edgebus`.
        progress: called with the share of the drafter loaded, 0 .. 1.

    Raises:
        edgebus.EdgebusError: the server cannot be reached, a key is wrong, or the drafter does not fit.

    Use it as a context manager; one generation at a time.
    """

    def __init__(
        self,
        server: str,
        *,
        server_key: str | Path | None = None,
        keys: str | Path | None = None,
        drafter: str | Drafter = "ngram",
        threads: int = 0,
        insecure: bool = False,
        timeout_s: float = 30.0,
        cache_dir: str | Path | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        if not insecure and (server_key is None or keys is None):
            raise ParameterError("give the key of the server and our own (--server-key and --keys), or say insecure")
        if not 0 < timeout_s <= MAX_TIMEOUT_S:
            raise ParameterError(f"timeout is {timeout_s} s, give more than 0 and at most {MAX_TIMEOUT_S:.0f}")
        self._timeout_s = timeout_s
        self._streaming = False
        own = None if insecure or keys is None else edgebus.load_keys(keys)
        key = None if insecure or server_key is None else edgebus.read_public_key(server_key)
        self._node = edgebus.Node(name="sled-device", keys=own, insecure=insecure)
        try:
            self._link = self._node.connect(server, server_key=key, timeout_s=timeout_s)
            self.target = self._call(messages.DESCRIBE, b"", Described)
            self._vocabulary, self._vocabulary_bytes = self._load_vocabulary(cache_dir)
            self.drafter = (
                open_drafter(drafter, self.target, threads=threads, progress=progress)
                if isinstance(drafter, str)
                else drafter
            )
        except BaseException:
            self._node.close()
            raise

    def __enter__(self) -> Device:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the link; bounded in time."""
        self._node.close()

    def generate(
        self,
        prompt: str | list[int],
        *,
        max_tokens: int = 128,
        sampling: Sampling | None = None,
        window: Window | None = None,
        chat: bool = True,
    ) -> Stream:
        """Start an answer; iterate over the result for its tokens as they are committed.

        Args:
            prompt: text, or target token ids (then no template is applied).
            max_tokens: tokens wanted at most.
            sampling: greedy by default.
            window: drafts per round; by default the drafter's confidence decides.
            chat: put text through the target's chat template.

        Raises:
            ParameterError: a value out of range.
        """
        if not 1 <= max_tokens <= messages.MAX_TOKENS:
            raise ParameterError(f"max_tokens is {max_tokens}, give 1 to {messages.MAX_TOKENS}")
        _check_prompt(prompt)
        machine = Generation(
            secrets.token_bytes(8),
            prompt,
            chat=chat and isinstance(prompt, str),
            sampling=sampling or Sampling(),
            max_tokens=max_tokens,
            window=window or Window.auto(),
            target_id=self.target.target_id,
        )
        return Stream(self, machine)

    def _call(self, service: str, payload: bytes, kind: type[_M]) -> _M:
        """One request to the server, its answer decoded, its refusals turned into our errors."""
        try:
            reply = self._link.request(service, payload, timeout_s=self._timeout_s)
        except edgebus.Refused as refused:
            raise _error(refused) from None
        try:
            return decode(kind, reply.payload)
        except ValueError as error:
            raise ProtocolError(f"{error}; check that device and server run the same version") from None

    def _load_vocabulary(self, cache_dir: str | Path | None) -> tuple[Vocabulary, int]:
        cache = VocabularyCache(Path(cache_dir) if cache_dir is not None else default_cache_dir())
        known = cache.load(self.target.vocab_hash)
        if known is not None:
            return known, 0
        before = self._link.stats().bytes_received
        fetched = self._call(messages.VOCABULARY, b"", Vocabulary)
        cache.save(self.target.vocab_hash, fetched)
        return fetched, self._link.stats().bytes_received - before


class Stream:
    """The tokens of one answer, as they are committed; `answer()` gives the whole with its figures."""

    def __init__(self, device: Device, machine: Generation) -> None:
        self._device, self._machine = device, machine
        self._text = ""
        self._started_at = time.monotonic()
        self._first_token_s = 0.0
        self._wall_s = 0.0
        self._bytes_before = device._link.stats()
        self._tokens = self._generate()

    def __iter__(self) -> Iterator[Token]:
        return self._tokens

    def close(self) -> None:
        """Break the answer off; the device is free for another one."""
        self._tokens.close()

    def answer(self) -> Answer:
        """Wait for the end of the answer and return it.

        Raises:
            AnswerIncomplete: it was broken off, by an error or by `close`.
        """
        for _ in self._tokens:
            pass
        machine, stats = self._machine, self._device._link.stats()
        if machine.state is not State.DONE:
            raise AnswerIncomplete(f"the answer was broken off after {len(machine.answer)} tokens; generate it again")
        return Answer(
            text=self._text,
            tokens=machine.answer,
            prompt_tokens=machine.prompt_tokens,
            finish_reason=machine.finish,
            stats=summarise(
                machine.counts,
                bytes_sent=stats.bytes_sent - self._bytes_before.bytes_sent,
                bytes_received=stats.bytes_received - self._bytes_before.bytes_received,
                vocabulary_bytes=self._device._vocabulary_bytes,
                first_token_s=self._first_token_s,
                wall_s=self._wall_s,
            ),
        )

    def _generate(self) -> Generator[Token, None, None]:
        if self._device._streaming:
            raise ParameterError("this device is busy with another answer; finish it, or close() it first")
        self._device._streaming = True
        machine, drafter = self._machine, self._device.drafter
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        try:
            drafter.start(machine.sampling)
            while machine.state is not State.DONE:
                if machine.state is State.OPENING:
                    machine.opened(self._call(messages.OPEN, encode(machine.open_request()), Opened))
                draft = drafter.draft(machine.history.tokens, machine.draft_limit(), machine.window)
                for committed in self._round(draft):
                    yield self._token(committed, decoder)
        finally:
            self._wall_s = time.monotonic() - self._started_at
            self._device._streaming = False
            self._forget()

    def _round(self, draft: list[int]) -> list[Committed]:
        machine = self._machine
        request = machine.submit(draft)
        try:
            return machine.verdict(self._call(messages.VERIFY, encode(request), Verdict))
        except SessionUnknown:
            if not machine.session_lost():
                raise
            return []

    def _call(self, service: str, payload: bytes, kind: type[_M]) -> _M:
        return self._device._call(service, payload, kind)

    def _token(self, committed: Committed, decoder: codecs.IncrementalDecoder) -> Token:
        if not self._first_token_s:
            self._first_token_s = time.monotonic() - self._started_at
        vocabulary = self._device._vocabulary
        piece = b""
        if committed.token < len(vocabulary.pieces) and committed.token not in vocabulary.special_ids:
            piece = vocabulary.pieces[committed.token]
        last = self._machine.state is State.DONE and committed.pos == len(self._machine.history) - 1
        text = decoder.decode(piece, final=last)
        self._text += text
        return Token(committed.token, committed.pos, committed.drafted, text)

    def _forget(self) -> None:
        """Tell the server that the session is over, if it still listens; nothing depends on it."""
        if self._machine.num_prompt:
            with contextlib.suppress(edgebus.EdgebusError):  # the server forgets idle sessions by itself
                self._device._link.request(messages.CLOSE, encode(Close(self._machine.session)), timeout_s=1.0)


def _check_prompt(prompt: str | list[int]) -> None:
    if not prompt:
        raise ParameterError("the prompt is empty; give at least one token of text")
    if not isinstance(prompt, str):
        return
    if len(prompt) > messages.MAX_PROMPT_CHARS:
        raise ParameterError(
            f"the prompt has {len(prompt)} characters, at most {messages.MAX_PROMPT_CHARS}; shorten it"
        )
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise ParameterError(f"the prompt is not valid text at character {error.start}; give it in UTF-8") from None


def _error(refused: edgebus.Refused) -> edgebus.EdgebusError:
    match refused.code:
        case "session_unknown":
            return SessionUnknown(refused.detail)
        case "prompt_too_long":
            return PromptTooLong(refused.detail)
        case "busy":
            return ServerBusy(refused.detail)
        case "target_changed":
            return TargetChanged(refused.detail)
        case "stale_base":
            committed = msgspec.msgpack.decode(refused.info, type=int) if refused.info else 0
            return StaleBase(refused.detail, committed)
        case _:
            return refused
