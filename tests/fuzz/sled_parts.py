"""What a device of sled reads: a server's verdicts, whatever it claims, and its own files of yesterday."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator

import msgspec

from edgebus.payloads import decode, encode
from sled.auto_pace import AutoPace
from sled.device import MAX_FLIGHTS, Conversation, Generation, State
from sled.errors import ProtocolError, StateUnusable
from sled.kept import MAGIC, VERSION, drafter_id, kept_of, pack, restore, unpack
from sled.learned import Learned
from sled.messages import MAX_WINDOW, Opened, Verdict
from sled.proposal import Proposal
from sled.saved import MAGIC as SAVED_MAGIC
from sled.saved import VERSION as SAVED_VERSION
from sled.saved import Saved
from sled.saved import pack as pack_saved
from sled.saved import unpack as unpack_saved
from sled.types import Message, Sampling, Terms
from sled.window import Window
from tests.fuzz.source import join_frames, split_frames

_SAID = (0.0, 0.05, 0.3, 0.97, 1.0)
_HEAD_BYTES = len(pack([])) - 2  # an array of an empty array


def kept(body: bytes) -> None:
    """The body of a file whose checksum is right: refused with a ValueError, or a device that drafts by it."""
    checksum = hashlib.blake2b(body, digest_size=16).digest()
    with contextlib.suppress(ValueError):
        for pair in unpack(MAGIC + VERSION.to_bytes(2, "little") + checksum + body):
            _drafts(restore(pair))


def _drafts(learned: Learned) -> None:
    """A few rounds of every kind; what is learned of them stays a number, and can be kept again."""
    now = 0.0
    for right in (0, 5, 2, 5, 5):
        pace = AutoPace(learned)
        pace.begin()
        pace.streams(100, 0.001)
        for length in range(5):
            pace.another(_SAID[:length], (), None, unread=length * 20)
            pace.more(_SAID[:length], _SAID[length], ())
            pace.another(_SAID[:length], _SAID, 0.01, hop=True, unread=1)
        pace.read(20, 0.01)
        pace.drafted(5, 0.01)
        now += 0.05
        pace.told(_SAID, right, 0.03, (), now=now)
        assert 0.0 <= learned.calibration.survival(_SAID, 2) <= 1.0
        assert math.isfinite(learned.draft_s)
        assert math.isfinite(learned.rate)
    again = kept_of(learned, b"t", b"d")
    if again is not None:
        restore(unpack(pack([again]))[0])


def kept_seeds() -> Iterator[bytes]:
    """What a device that has heard of little and of much would write."""
    learned, now = Learned(), 0.0
    for number in range(40):
        pace = AutoPace(learned)
        now += 0.1
        pace.drafted(5, 0.01)
        pace.told(_SAID, number % 6, 0.05, (), now=now)
        found = kept_of(learned, b"target", drafter_id("ngram"))
        if found is not None and number % 10 == 9:
            yield pack([found, found])[_HEAD_BYTES:]


def told(data: bytes) -> None:
    """A server that lies: a device stops with a ProtocolError, or has as many tokens as it asked for at most."""
    machine = Generation(
        b"session.", "prompt", chat=False, sampling=Sampling(), max_tokens=12, window=Window(4), max_reopens=2
    )
    for piece in split_frames(data):
        with contextlib.suppress(ProtocolError, ValueError):
            _tell(machine, piece)
        assert len(machine.answer) <= machine.max_tokens
        assert len(machine.chain.flights) <= MAX_FLIGHTS
        assert machine.state is State.OPENING or 0 <= machine.draft_limit() <= MAX_WINDOW
        assert (machine.state is State.DONE) == bool(machine.finish)
        if machine.state is State.DONE:
            return


def _tell(machine: Generation, piece: bytes) -> None:
    """One message of the server, of the kind that is due; nothing at all means that it lost the session."""
    if not piece:
        machine.session_lost()
    elif machine.state is State.OPENING:
        encode(machine.open_request())
        machine.opened(decode(Opened, piece))
    elif machine.state is State.STREAMING:
        machine.streamed(decode(Verdict, piece))
    elif machine.server_decodes:
        encode(machine.decode_request())
    else:
        if len(machine.chain.flights) < MAX_FLIGHTS:
            wanted = machine.chain.start + machine.draft_limit()
            machine.chain.proposals += [Proposal(token, 0.5) for token in range(len(machine.chain.proposals), wanted)]
            encode(machine.submit(4))
        committed = machine.verdict(decode(Verdict, piece))
        assert len(committed) <= MAX_WINDOW + 1


def saved(body: bytes) -> None:
    """The body of a saved answer whose checksum is right: unusable, or one that can be gone on with and kept again."""
    checksum = hashlib.blake2b(body, digest_size=16).digest()
    try:
        found = unpack_saved(SAVED_MAGIC + SAVED_VERSION.to_bytes(2, "little") + checksum + body, "file")
    except StateUnusable:
        return
    machine = Generation(
        b"session.",
        Conversation(found.messages) if found.messages else found.prompt,
        chat=found.chat,
        sampling=found.sampling,
        max_tokens=found.terms.max_tokens,
        window=Window(4),
        terms=found.terms,
    )
    if found.prompt_tokens:
        guesses = [Proposal(token, confidence) for token, confidence in found.unverified]
        machine.restore(found.prompt_tokens, found.answer, guesses, found.finish)
    assert found.prompt or found.messages or found.prompt_tokens
    assert found.prompt_tokens or not (found.answer or found.unverified or found.finish)
    assert len(found.answer) + (not found.finish) <= max(1, machine.max_tokens)
    assert (machine.state is State.DONE) == bool(found.finish)
    if machine.state is State.OPENING:
        encode(machine.open_request())
    assert repr(unpack_saved(pack_saved(found), "again")) == repr(found)


def _verdict(base: int, tokens: list[int], limit: int = 4) -> bytes:
    return encode(Verdict(base, tokens, min(2, len(tokens)), "", limit, 1))


def told_seeds() -> Iterator[bytes]:
    """Answers by rounds, by a stream, and with a session that is lost on the way."""
    opened = encode(Opened([1, 2, 3], 3, 4, [0.1]))
    yield join_frames([opened, _verdict(3, [0, 1]), _verdict(5, [0, 1, 2], 0), b"x", _verdict(8, [5]), _verdict(9, [])])
    yield join_frames([opened, _verdict(3, [0, 1]), b"", encode(Opened([1, 2, 3], 5, 4)), _verdict(5, [0] * 14)])
    yield join_frames(
        [encode(Opened([1], 1, 0)), b"x", _verdict(1, [7, 8], 0), encode(Verdict(3, [], 0, "stop", 0, 0))]
    )


def saved_seeds() -> Iterator[bytes]:
    """An answer that has begun, one that has not, one that has ended, and two that contradict themselves."""
    sampling, terms = Sampling(temperature=0.5), Terms(9, ("x",))
    begun = Saved("t", b"id", "prompt", True, [], sampling, terms, [1, 2], [3], [], "", [(4, 0.5)])
    chat = [Message("user", "hi")]
    yield encode(begun)
    yield encode(msgspec.structs.replace(begun, prompt="", messages=chat, prompt_tokens=[], answer=[], unverified=[]))
    ended = msgspec.structs.replace(begun, prompt=[1, 2], finish="length", answer=[3] * 9, unverified=[])
    yield encode(ended)
    yield encode(msgspec.structs.replace(ended, finish=""))
    yield encode(msgspec.structs.replace(begun, prompt_tokens=[]))


SEEDS = {"kept": kept_seeds, "told": told_seeds, "saved": saved_seeds}
