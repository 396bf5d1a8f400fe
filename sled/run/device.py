"""The device's shell: a drafter, a link to the server, and the generation machine between them."""

from __future__ import annotations

import contextlib
import random
import secrets
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import msgspec

import edgebus
from edgebus.files import cache_dir as default_cache_dir
from edgebus.payloads import Payload, decode, encode
from sled import messages
from sled.device import Committed, Generation, State
from sled.drafters import Drafter, SamplingDrafter, open_drafter
from sled.errors import AnswerIncomplete, ParameterError, ProtocolError
from sled.messages import Close, Described, Opened, Trace, Traced, Verdict, Vocabulary
from sled.run.refusals import as_error, later
from sled.run.servers import Servers, read_endpoints
from sled.stats import Stats, summarise
from sled.stop_text import AnswerText
from sled.takeover import Next, Patience, after_failure, avoidance_s
from sled.types import FinishReason, Logprob, Sampling, Terms, Token
from sled.vocabulary import VocabularyCache
from sled.window import Window

_M = TypeVar("_M", bound=Payload)
MAX_TIMEOUT_S = 86_400.0
_LOOK_S = 0.1  # how often a waiting request looks whether its server still lives
_STREAM_BYTES = 8192  # how far a server that decodes may be ahead of what was taken here


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A finished generation.

    When `finish_reason` is "stop", `tokens` end with the stop token or with the token that completed a stop text or a
    form; `text` ends before it. `logprobs` has one for each token if they were asked for.
    """

    text: str
    tokens: list[int]
    prompt_tokens: list[int]
    finish_reason: FinishReason
    stats: Stats
    logprobs: list[Logprob] = []


class Device:
    """A device that drafts with a small model and has a server's target decide.

    Args:
        server: endpoint, e.g. "tcp://10.0.0.5:5555"; or several servers of the same target, the less loaded of which is
            asked, and which finish each other's answers.
        server_key: the server's public key, a file or the 40 characters, one for all or one for each server; None only
            with `insecure`.
        keys: directory with this device's keys (`edgebus keygen`); None only with `insecure`.
        drafter: "none", "ngram", "smollm2-12m", a .gguf file, a model directory, or a `Drafter` of your own;
            "torch:" before a name or path has torch run the model.
        threads: CPU threads for a model drafter; 0 lets it decide (the native decoder takes 1).
        insecure: no encryption and no authentication, said explicitly.
        timeout_s: how long to wait for the server, for the connection and for each round.
        cache_dir: where the target's vocabulary is kept; default is `~/.cache/edgebus`.
        progress: called with the share of the drafter loaded, 0 .. 1.
        directory: nodes at `server` may name further servers: their directory of services is followed.
        service: what servers are announced as in the directory (`sled serve --announce`).

    Raises:
        edgebus.EdgebusError: the server cannot be reached, a key is wrong, or the drafter does not fit.

    Use it as a context manager; one generation at a time.
    """

    def __init__(
        self,
        server: str | Sequence[str],
        *,
        server_key: str | Path | Sequence[str | Path] | None = None,
        keys: str | Path | None = None,
        drafter: str | Drafter = "ngram",
        threads: int = 0,
        insecure: bool = False,
        timeout_s: float = 30.0,
        cache_dir: str | Path | None = None,
        progress: Callable[[float], None] | None = None,
        directory: bool = False,
        service: str = "sled",
    ) -> None:
        if not insecure and (server_key is None or keys is None):
            raise ParameterError("give the key of the server and our own (--server-key and --keys), or say insecure")
        if not 0 < timeout_s <= MAX_TIMEOUT_S:
            raise ParameterError(f"timeout is {timeout_s} s, give more than 0 and at most {MAX_TIMEOUT_S:.0f}")
        self._timeout_s = timeout_s
        self._streaming = False
        own = None if insecure or keys is None else edgebus.load_keys(keys)
        endpoints = read_endpoints(server, server_key, insecure=insecure)
        self._servers: Servers | None = None
        self._node = edgebus.Node(name="sled-device", keys=own, insecure=insecure)
        try:
            self._servers = Servers(self._node, endpoints, service=service, directory=directory, timeout_s=timeout_s)
            self.target = self._describe()
            self._vocabulary, self._vocabulary_bytes = self._load_vocabulary(cache_dir)
            self.drafter = (
                open_drafter(drafter, self.target, threads=threads, progress=progress)
                if isinstance(drafter, str)
                else drafter
            )
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Device:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the links; bounded in time."""
        if self._servers is not None:
            self._servers.close()
        self._node.close()

    @property
    def server(self) -> str:
        """Endpoint of the server that is asked now."""
        assert self._servers is not None
        return self._servers.link.endpoint

    def generate(
        self,
        prompt: str | list[int],
        *,
        max_tokens: int = 128,
        sampling: Sampling | None = None,
        window: Window | None = None,
        chat: bool = True,
        stop: str | Sequence[str] = (),
        logprobs: int = -1,
        rate: float = 0.0,
    ) -> Stream:
        """Start an answer; iterate over the result for its tokens as they are committed.

        Args:
            prompt: text, or target token ids (then no template is applied).
            max_tokens: tokens wanted at most.
            sampling: greedy by default.
            window: drafts per round; by default the drafter's confidence decides.
            chat: put text through the target's chat template.
            stop: the answer ends with the first token that completes one of these texts, at most 16 of 1 .. 256
                characters; its text ends before it.
            logprobs: with every token its log-probability and those of so many likeliest ones, 0 .. 20; -1 is off.
            rate: tokens per second that are needed, for the order of rounds at the server; 0 leaves it to the server.

        Raises:
            ParameterError: a value out of range.
        """
        if not 1 <= max_tokens <= messages.MAX_TOKENS:
            raise ParameterError(f"max_tokens is {max_tokens}, give 1 to {messages.MAX_TOKENS}")
        _check_prompt(prompt)
        try:
            terms = Terms(max_tokens, (stop,) if isinstance(stop, str) else tuple(stop), logprobs, rate)
        except ValueError as error:
            raise ParameterError(str(error)) from None
        machine = Generation(
            secrets.token_bytes(8),
            prompt,
            chat=chat and isinstance(prompt, str),
            sampling=sampling or Sampling(),
            max_tokens=max_tokens,
            window=window or Window.auto(),
            target_id=self.target.target_id,
            terms=terms,
        )
        return Stream(self, machine)

    def _call(self, service: str, payload: bytes, kind: type[_M]) -> _M:
        """One request to the server, its answer decoded, its refusals turned into our errors."""
        assert self._servers is not None
        link = self._servers.link
        pending = link.send_request(service, payload, timeout_s=self._timeout_s)
        while not pending.wait(_LOOK_S):
            if self._servers.lost(link):
                pending.cancel()
                raise edgebus.LinkLost(f"{link.endpoint} is down: another server may answer")
        try:
            reply = pending.result()
        except edgebus.Refused as refused:
            raise as_error(refused) from None
        return _decoded(kind, reply.payload)

    def _describe(self) -> Described:
        """What the target is, from the first server that answers: a node of the directory may serve none."""
        assert self._servers is not None
        until = time.monotonic() + self._timeout_s
        while True:
            try:
                return self._call(messages.DESCRIBE, b"", Described)
            except edgebus.EdgebusError as error:
                left_s = until - time.monotonic()
                where = after_failure(error, committed=False)
                if where is Next.NOWHERE or not self._servers.several or left_s <= 0:
                    raise
                if not self._servers.leave(avoidance_s(error)):
                    time.sleep(min(_LOOK_S, left_s))

    def _load_vocabulary(self, cache_dir: str | Path | None) -> tuple[Vocabulary, int]:
        cache = VocabularyCache(Path(cache_dir) if cache_dir is not None else default_cache_dir())
        known = cache.load(self.target.vocab_hash)
        if known is not None:
            return known, 0
        before = self._traffic()[1]
        fetched = self._call(messages.VOCABULARY, b"", Vocabulary)
        cache.save(self.target.vocab_hash, fetched)
        return fetched, self._traffic()[1] - before

    def _traffic(self) -> tuple[int, int]:
        assert self._servers is not None
        return self._servers.traffic()


class Stream:
    """The tokens of one answer, as they are committed; `answer()` gives the whole with its figures.

    Attributes:
        moves: how often another server, or the same one after a failure, had to take the answer over.
    """

    def __init__(self, device: Device, machine: Generation) -> None:
        self._device, self._machine = device, machine
        self._text = ""
        self._shown = AnswerText(machine.terms.stop)
        self._logprobs: list[Logprob] = []
        self._started_at = time.monotonic()
        self._first_token_s = 0.0
        self._wall_s = 0.0
        assert device._servers is not None
        self._servers = device._servers
        self._bytes_before = self._servers.traffic()
        self._patience = Patience(device._timeout_s, random.Random())  # noqa: S311 - spreads load, keeps no secret
        self.moves = 0
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
        self._text += self._shown.add(b"", last=True)  # of an answer whose end came without a token
        machine, (sent, received) = self._machine, self._servers.traffic()
        if machine.state is not State.DONE:
            raise AnswerIncomplete(f"the answer was broken off after {len(machine.answer)} tokens; generate it again")
        return Answer(
            text=self._text,
            logprobs=self._logprobs,
            tokens=machine.answer,
            prompt_tokens=machine.prompt_tokens,
            finish_reason=machine.finish,
            stats=summarise(
                machine.counts,
                bytes_sent=sent - self._bytes_before[0],
                bytes_received=received - self._bytes_before[1],
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
        try:
            drafter.start(machine.sampling)
            self._servers.choose(self._device._timeout_s)
            while machine.state is not State.DONE:
                try:
                    if machine.state is State.OPENING:
                        machine.opened(self._call(messages.OPEN, encode(machine.open_request()), Opened))
                        if isinstance(drafter, SamplingDrafter):
                            drafter.opened(machine.num_prompt)
                    elif machine.server_decodes:
                        with contextlib.closing(self._follow_stream()) as tokens:
                            for committed in tokens:
                                yield self._token(committed)
                    else:
                        draft = drafter.draft(machine.history.tokens, machine.draft_limit(), machine.window)
                        for committed in self._round(draft):
                            yield self._token(committed)
                except edgebus.EdgebusError as error:
                    self._go_on_after(error)
        finally:
            self._wall_s = time.monotonic() - self._started_at
            self._device._streaming = False
            self._forget()

    def trace(self, last: int = 64) -> Traced:
        """What the server has noted about the last rounds of this answer.

        Raises:
            SessionUnknown: it has forgotten.
        """
        return self._call(messages.TRACE, encode(Trace(self._machine.session, last)), Traced)

    def _round(self, draft: list[int]) -> list[Committed]:
        drafter = self._device.drafter
        request = self._machine.submit(draft, drafter.law if isinstance(drafter, SamplingDrafter) else None)
        return self._machine.verdict(self._call(messages.VERIFY, encode(request), Verdict))

    def _follow_stream(self) -> Generator[Committed, None, None]:
        """Tokens that the server decodes without drafts, until it wants some again or the answer ends."""
        machine, link, timeout_s = self._machine, self._servers.link, self._device._timeout_s
        request = encode(machine.decode_request())
        with link.stream(messages.DECODE, request, window_bytes=_STREAM_BYTES) as stream:
            until = time.monotonic() + timeout_s
            while machine.state is State.STREAMING:
                part = stream.get(_LOOK_S)
                if part is not None:
                    yield from machine.streamed(_decoded(Verdict, bytes(part.payload)))
                    until = time.monotonic() + timeout_s
                elif stream.ended:
                    self._end_of(stream)
                elif self._servers.lost(link):
                    raise edgebus.LinkLost(f"{link.endpoint} is down: another server may go on")
                elif time.monotonic() > until:
                    raise edgebus.DeadlineExceeded(
                        f"{link.endpoint}: no token within {timeout_s:.3g} s, see that the server runs"
                    )

    def _end_of(self, stream: edgebus.Stream) -> None:
        try:
            stream.result()
        except edgebus.Refused as refused:
            raise as_error(refused) from None
        self._machine.stream_ended()

    def _go_on_after(self, error: edgebus.EdgebusError) -> None:
        """Prepare to go on after a failure, at another server or here; raises the error if there is no use in it."""
        machine, now = self._machine, time.monotonic()
        begun = len(machine.history) > machine.num_prompt > 0
        where = after_failure(error, committed=begun)
        if where is Next.NOWHERE or not self._patience.allows(len(machine.history), now=now):
            raise error
        if where is Next.HERE:
            if not machine.session_lost():
                raise error
            return
        self._drop_session()
        advice = later(error)
        others = [(endpoint, key or None) for endpoint, key in advice.servers]
        if not self._servers.leave(max(avoidance_s(error), advice.after_s), others):
            if where is Next.ELSEWHERE_ONLY:
                raise error
            time.sleep(self._patience.pause_s(advice.after_s, now=now))
            self._servers.choose(self._patience.left_s(now=time.monotonic()))
        # Under a new id: the old one may stand for a longer text by now, which we have not been told.
        self.moves += 1
        machine.move(secrets.token_bytes(8))

    def _drop_session(self) -> None:
        """What is left at a server that we leave is no use to anybody."""
        if self._machine.state is not State.OPENING and self._servers.link.health == "up":
            with contextlib.suppress(edgebus.EdgebusError):
                self._servers.link.send(messages.CLOSE, encode(Close(self._machine.session)), timeout_s=5.0)

    def _call(self, service: str, payload: bytes, kind: type[_M]) -> _M:
        return self._device._call(service, payload, kind)

    def _token(self, committed: Committed) -> Token:
        if not self._first_token_s:
            self._first_token_s = time.monotonic() - self._started_at
        vocabulary = self._device._vocabulary
        piece = b""
        if committed.token < len(vocabulary.pieces) and committed.token not in vocabulary.special_ids:
            piece = vocabulary.pieces[committed.token]
        last = self._machine.state is State.DONE and committed.pos == len(self._machine.history) - 1
        text = self._shown.add(piece, last=last)
        self._text += text
        if committed.logprob is not None:
            self._logprobs.append(committed.logprob)
        return Token(committed.token, committed.pos, committed.drafted, text, committed.logprob)

    def _forget(self) -> None:
        """Tell the server that the session is over, if it still listens; nothing depends on it."""
        if self._machine.num_prompt:
            with contextlib.suppress(edgebus.EdgebusError):  # the server forgets idle sessions by itself
                self._servers.link.request(messages.CLOSE, encode(Close(self._machine.session)), timeout_s=1.0)


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


def _decoded(kind: type[_M], payload: bytes) -> _M:
    try:
        return decode(kind, payload)
    except ValueError as error:
        raise ProtocolError(f"{error}; check that device and server run the same version") from None
