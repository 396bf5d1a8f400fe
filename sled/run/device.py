"""The device's shell: a drafter, links to servers, and what answers are asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import msgspec

import edgebus
from edgebus.files import cache_dir as default_cache_dir
from edgebus.payloads import Payload
from sled import messages
from sled.device import Conversation, Generation
from sled.drafters import Drafter, open_drafter
from sled.drafters.guard import Guard, guarded
from sled.errors import ParameterError
from sled.learned import Learned
from sled.loss import RELEASE_AFTER_S, Loss, OnLoss
from sled.messages import Described, Vocabulary
from sled.proposal import Proposal
from sled.run.answering import Stream
from sled.run.around import Around
from sled.run.memory import Memory
from sled.run.refusals import as_error, decoded
from sled.run.saving import load
from sled.run.servers import Servers, read_endpoints
from sled.saved import check_target
from sled.stats import Answer
from sled.takeover import Next, after_failure, avoidance_s
from sled.types import Message, Sampling, Terms
from sled.vocabulary import VocabularyCache
from sled.window import Window

__all__ = ["Answer", "Device", "Stream"]

_M = TypeVar("_M", bound=Payload)
MAX_TIMEOUT_S = 86_400.0


class Device:
    """A device that drafts with a small model and has a server's target decide.

    Args:
        server: endpoint, e.g. "tcp://10.0.0.5:5555"; or several servers of the same target, the less loaded of which is
            asked, and which finish each other's answers.
        server_key: the server's public key, a file or the 40 characters, or one for each endpoint: servers have keys of
            their own, and endpoints with the same key are addresses of one server. None only with `insecure`.
        keys: directory with this device's keys (`edgebus keygen`); None only with `insecure`.
        drafter: "none", "ngram", "smollm2-12m", a .gguf file, a model directory, or a `Drafter` of your own;
            "torch:" before a name or path has torch run the model.
        threads: CPU threads for a model drafter; 0 lets it decide (the native decoder takes 1).
        insecure: no encryption and no authentication, said explicitly.
        timeout_s: how long to wait for the server, for the connection and for each round.
        cache_dir: where the target's vocabulary is kept, and what was learned; default is `~/.cache/edgebus`.
        progress: called with the share of the drafter loaded, 0 .. 1.
        directory: nodes at `server` may name further servers: their directory of services is followed.
        service: what servers are announced as in the directory (`sled serve --announce`).
        on_loss: what an answer does while no server can be asked. "fail": after `timeout_s` it ends with the error.
            "wait": it goes on when one is back. "release": drafts are shown meanwhile as `Unverified` events, which are
            verified, or retracted, when one is back; tokens are committed ones as ever.
        wait_s: how long that may last, under "release" from the last draft on; by default for ever under "wait", and
            `timeout_s` under "release", after which the answer ends with what is unverified told apart.
        release_after_s: under "release", so long without a server before drafts are shown.
        remember: keep in `cache_dir` what is learned of a drafter that is given by name: how often it is right, so that
            the next process begins with it. It changes no answer.

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
        on_loss: OnLoss = "fail",
        wait_s: float | None = None,
        release_after_s: float = RELEASE_AFTER_S,
        remember: bool = True,
    ) -> None:
        if not insecure and (server_key is None or keys is None):
            raise ParameterError("give the key of the server and our own (--server-key and --keys), or say insecure")
        if not 0 < timeout_s <= MAX_TIMEOUT_S:
            raise ParameterError(f"timeout is {timeout_s} s, give more than 0 and at most {MAX_TIMEOUT_S:.0f}")
        self._timeout_s = timeout_s
        self._on_loss: OnLoss = on_loss
        self._wait_s = wait_s if wait_s is not None else timeout_s if on_loss == "release" else math.inf
        self._release_after_s = release_after_s
        self.loss()
        self._around = Around()
        self.closed = False
        self._streaming = False
        self._learned = Learned()
        own = None if insecure or keys is None else edgebus.load_keys(keys)
        endpoints = read_endpoints(server, server_key, insecure=insecure)
        self._servers: Servers | None = None
        self._drafter: Guard | None = None
        self._node = edgebus.Node(name="sled-device", keys=own, insecure=insecure)
        try:
            self._servers = Servers(
                self._node,
                endpoints,
                service=service,
                directory=directory,
                timeout_s=timeout_s,
                clock=self._around.clock,
            )
            self.target = self._describe()
            vocabulary, self._vocabulary_bytes = self._load_vocabulary(cache_dir)
            special = set(vocabulary.special_ids)
            self._pieces = [b"" if token in special else piece for token, piece in enumerate(vocabulary.pieces)]
            if isinstance(drafter, str):
                named = drafter
                drafter = open_drafter(named, self.target, vocabulary=vocabulary, threads=threads, progress=progress)
                if remember:
                    self._memory = Memory(_cache(cache_dir), self.target.target_id, named, self._around)
                    self._learned = self._memory.load()
            self._drafter = guarded(drafter, self.target)
        except BaseException:
            self.close()
            raise

    _memory: Memory | None = None  # of what is learned; none where nothing is kept
    _stream: Stream | None = None  # the answer that is under way

    def __enter__(self) -> Device:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the links, and let the drafter go; bounded in time. An answer under way ends with an error."""
        first, self.closed = not self.closed, True
        if self._drafter is not None:
            self._drafter.close()
        if first and self._stream is not None:
            self._stream.leave()
        if self._servers is not None:
            self._servers.close()
        self._node.close()
        if first and self._memory is not None:
            self._memory.save(self._learned)

    @property
    def drafter(self) -> Guard:
        """The drafter behind its guard: `drafter.drafter` is the one that was given, `fault` says why it is off."""
        assert self._drafter is not None
        return self._drafter

    @property
    def server(self) -> str:
        """Endpoint of the server that is asked now."""
        assert self._servers is not None
        return self._servers.link.endpoint

    def chat(self, messages: Sequence[Message | Mapping[str, str]], **options: Any) -> Stream:
        """Start the next answer of a conversation.

        Args:
            messages: `Message(role, content)` or mappings with these keys, oldest first; the chat template knows
                which roles there are.
            options: as `generate` takes them.

        Raises:
            ParameterError: a message without role or content, or an option out of range.
        """
        return self.generate(Conversation(_messages(messages)), **options)

    def generate(
        self,
        prompt: str | list[int] | Conversation,
        *,
        max_tokens: int = 128,
        sampling: Sampling | None = None,
        window: Window | None = None,
        chat: bool = True,
        stop: str | Sequence[str] = (),
        logprobs: int = -1,
        rate: float = 0.0,
        save_to: str | Path | None = None,
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
            save_to: a file that the answer is kept in while it comes, for `resume`; readable by its owner alone.

        Raises:
            ParameterError: a value out of range.
            StateUnusable: the file cannot be written.
        """
        if not 1 <= max_tokens <= messages.MAX_TOKENS:
            raise ParameterError(f"max_tokens is {max_tokens}, give 1 to {messages.MAX_TOKENS}")
        _check_prompt(prompt)
        try:
            terms = Terms(max_tokens, (stop,) if isinstance(stop, str) else tuple(stop), logprobs, rate)
        except ValueError as error:
            raise ParameterError(str(error)) from None
        machine = Generation(
            self._around.new_id(),
            prompt,
            chat=chat and isinstance(prompt, str),
            sampling=sampling or Sampling(),
            max_tokens=max_tokens,
            window=window or Window.auto(),
            target_id=self.target.target_id,
            terms=terms,
        )
        return Stream(self, machine, Path(save_to) if save_to is not None else None)

    def resume(self, path: str | Path, *, window: Window | None = None, save: bool = True) -> Stream:
        """Go on with an answer that was saved: the stream gives its further tokens, `answer()` the whole.

        Any server of the same target may go on with it, whichever it was begun at. Figures count from now on.

        Args:
            path: what `save_to` named.
            window: drafts per round, as for `generate`.
            save: keep the file up to date.

        Raises:
            StateUnusable: there is no such file, it is damaged, of another version, or of another target.
        """
        path = Path(path)
        saved = load(path, self._around)
        check_target(saved, self.target.target_id, self.target.name, str(path))
        machine = Generation(
            self._around.new_id(),
            Conversation(saved.messages) if saved.messages else saved.prompt,
            chat=saved.chat,
            sampling=saved.sampling,
            max_tokens=saved.terms.max_tokens,
            window=window or Window.auto(),
            target_id=self.target.target_id,
            terms=saved.terms,
        )
        if saved.prompt_tokens:
            guesses = [Proposal(token, confidence) for token, confidence in saved.unverified]
            machine.restore(saved.prompt_tokens, saved.answer, guesses, saved.finish)
        return Stream(self, machine, path if save else None, saved)

    def _remember(self) -> None:
        """An answer has ended, which may have taught something."""
        if self._memory is not None:
            self._memory.look(self._learned)

    def loss(self) -> Loss:
        """What the next answer does without a server.

        Raises:
            ParameterError: a value out of range.
        """
        return Loss(self._on_loss, self._wait_s, self._release_after_s)

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for; none for control tokens and ids that the vocabulary lacks."""
        return self._pieces[token] if 0 <= token < len(self._pieces) else b""

    def _call(self, service: str, payload: bytes, kind: type[_M]) -> _M:
        """One request to the server, its answer decoded, its refusals turned into our errors."""
        assert self._servers is not None
        link = self._servers.link
        pending = link.send_request(service, payload, timeout_s=self._timeout_s)
        while not pending.wait(self._around.look_s):
            if self._servers.lost(link):
                pending.cancel()
                raise edgebus.LinkLost(f"{link.endpoint} is down: another server may answer")
        try:
            reply = pending.result()
        except edgebus.Refused as refused:
            raise as_error(refused) from None
        return decoded(kind, reply.payload)

    def _describe(self) -> Described:
        """What the target is, from the first server that answers: a node of the directory may serve none."""
        assert self._servers is not None
        until = self._around.clock() + self._timeout_s
        while True:
            try:
                return self._call(messages.DESCRIBE, b"", Described)
            except edgebus.EdgebusError as error:
                left_s = until - self._around.clock()
                where = after_failure(error)
                if where is Next.NOWHERE or not self._servers.several or left_s <= 0:
                    raise
                if not self._servers.leave(avoidance_s(error)):
                    self._around.sleep(min(self._around.look_s, left_s))

    def _load_vocabulary(self, cache_dir: str | Path | None) -> tuple[Vocabulary, int]:
        cache = VocabularyCache(_cache(cache_dir))
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


def _cache(directory: str | Path | None) -> Path:
    return Path(directory) if directory is not None else default_cache_dir()


def _messages(given: Sequence[Message | Mapping[str, str]]) -> list[Message]:
    try:
        return [
            each if isinstance(each, Message) else msgspec.convert([each["role"], each["content"]], Message)
            for each in given
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise ParameterError(f"a message is not as it should be ({error}); give role and content, both text") from None


def _check_prompt(prompt: str | list[int] | Conversation) -> None:
    if isinstance(prompt, Conversation):
        if not prompt.messages:
            raise ParameterError("the conversation is empty; give at least one message")
        count = len(prompt.messages)
        if count > messages.MAX_MESSAGES:
            raise ParameterError(f"{count} messages, at most {messages.MAX_MESSAGES} are taken; leave the oldest out")
        for message in prompt.messages:
            _check_text(message.content)
        return
    if not prompt:
        raise ParameterError("the prompt is empty; give at least one token of text")
    if isinstance(prompt, str):
        _check_text(prompt)
    elif len(prompt) > messages.MAX_TOKENS:
        raise ParameterError(f"the prompt has {len(prompt)} tokens, at most {messages.MAX_TOKENS}; shorten it")


def _check_text(prompt: str) -> None:
    if len(prompt) > messages.MAX_PROMPT_CHARS:
        raise ParameterError(
            f"the prompt has {len(prompt)} characters, at most {messages.MAX_PROMPT_CHARS}; shorten it"
        )
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise ParameterError(f"the prompt is not valid text at character {error.start}; give it in UTF-8") from None
