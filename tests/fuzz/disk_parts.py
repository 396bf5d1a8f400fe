"""What lies on the disk and was damaged there: journals, keys, conversations, vocabularies, prompts and recordings."""

from __future__ import annotations

import contextlib
import io
import random
import struct
import tempfile
import unittest.mock
import zlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import msgpack

import edgebus
from edgebus import messages as m
from edgebus.errors import EdgebusError
from edgebus.payloads import decode, encode
from edgebus.recorder import Reader, Start, Traffic, Writer
from edgebus.replay import Replay
from qpart.errors import RequestError
from qpart.journal import Journal
from qpart.signing import PUBLIC_FILE, SECRET_FILE, generate_signing_key, load_signer, read_publisher, verify
from sled.chat.conversation import Conversation, Settings
from sled.distill.prompts import FilePrompts
from sled.distill.settings import Settings as DistillSettings
from sled.distill.settings import keep_settings
from sled.errors import ParameterError
from sled.messages import Vocabulary
from sled.types import Sampling
from sled.vocabulary import VocabularyCache, _checksum, vocabulary_hash
from tests.fuzz.source import join_frames, split_frames

KEY = b"key of the question"


def _record(content: bytes) -> bytes:
    return struct.pack("<II", len(content), zlib.crc32(content)) + content


def journals(data: bytes) -> None:
    """A journal as a file, and as records whose checksums are right: what is there is recalled and kept."""
    first, *contents = split_frames(data) or [b""]
    with tempfile.TemporaryDirectory() as folder:
        for number, raw in enumerate((data, b"".join(_record(each) for each in (first, *contents)))):
            path = Path(folder) / str(number)
            path.write_bytes(raw)
            _resume(path, KEY if number == 0 else first)


def _whole(raw: bytes, key: bytes) -> dict[str, bytes]:
    """The results in a journal, by its layout and another msgpack; none if it is of another key or kind."""
    records, at = [], 0
    while len(raw) - at >= 8:
        length, checksum = struct.unpack_from("<II", raw, at)
        record = raw[at + 8 : at + 8 + length]
        if len(record) < length or zlib.crc32(record) != checksum:
            break
        records.append(record)
        at += 8 + length
    try:
        pairs = [msgpack.unpackb(record, use_list=False) for record in records[1:]]
    except (ValueError, TypeError, msgpack.UnpackException):
        return {}
    right = all(isinstance(pair, tuple) and list(map(type, pair)) == [str, bytes] for pair in pairs)
    return dict(pairs) if right and records[:1] == [key] else {}


def _resume(path: Path, key: bytes) -> None:
    expected = _whole(path.read_bytes(), key)
    with Journal(path, key) as journal:
        known = dict(journal._known)
        assert known == expected
        for name in [*known, "none"]:
            for kind in (float, list[float], dict[str, int]):
                found = journal.recall(name, kind)
                assert found is None or name in known
        journal.keep("added", 1.5)
        with contextlib.suppress(RequestError):
            Journal(path, key)
            raise AssertionError("two hold one journal")
    with Journal(path, key) as journal:
        assert journal._known == known | {"added": journal._known["added"]}
        assert journal.recall("added", float) == 1.5


def publishers(data: bytes) -> None:
    """Files of signing keys: refused by name, or a key that signs what it verifies; a secret is never a public key."""
    with tempfile.TemporaryDirectory() as folder:
        for name in (SECRET_FILE, PUBLIC_FILE):
            path = Path(folder) / name
            path.write_bytes(data)
            path.chmod(0o600)
        with contextlib.suppress(edgebus.KeyFileError):
            public = read_publisher(Path(folder) / PUBLIC_FILE)
            assert len(public) == 32
            assert not any(line.strip().startswith("ed25519-secret-key =") for line in data.decode().splitlines())
        try:
            signer = load_signer(folder)
        except edgebus.KeyFileError:
            return
        verify(signer.public, bytes(16), signer(bytes(16)))
        said = [line.partition("=") for line in data.decode().splitlines()]
        assert signer.public == bytes.fromhex(
            next(key for name, _, key in said if name.strip() == "ed25519-public-key")
        )


def conversations(data: bytes) -> None:
    """The file of a chat: refused by name, or the same when it is written again."""
    try:
        found, target = Conversation.from_json(data)
    except ParameterError:
        return
    again, same = Conversation.from_json(found.to_json(target))
    assert (again.settings, again.turns, same) == (found.settings, found.turns, target)


def vocabularies(data: bytes) -> None:
    """A kept vocabulary: what its name says, or nothing; and one that is kept is found again."""
    with tempfile.TemporaryDirectory() as folder:
        cache = VocabularyCache(Path(folder))
        for raw in (data, _checksum(data) + data):
            cache._path(bytes(16)).write_bytes(raw)
            assert cache.load(bytes(16)) is None
        try:
            vocabulary = decode(Vocabulary, data)
        except ValueError:
            return
        name = vocabulary_hash(vocabulary)
        cache.save(name, vocabulary)
        assert cache.load(name) == vocabulary
        cache._path(name).write_bytes(cache._path(name).read_bytes()[:-1])
        assert cache.load(name) is None


def prompts(data: bytes) -> None:
    """Prompts and the note of a distillation, as files: refused by name, or none is both learned from and held out."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "settings.json"
        path.write_bytes(data)
        with contextlib.suppress(ParameterError):
            keep_settings(Path(folder), DistillSettings("t", steps=1), {"vocabulary": "x"})
        assert path.read_bytes() == data
        try:
            found = FilePrompts(path)
        except ParameterError:
            return
        chance = random.Random(1)
        learned, held = ({found.draw(chance, held_out=out) for _ in range(20)} for out in (False, True))
        assert not learned & held
        assert all(learned)
        assert all(held)


class _Echo:
    """A link that answers every request with what it has asked."""

    def __init__(self) -> None:
        self.sent = 0

    def send_request(self, service: str, payload: bytes, arrays: object, timeout_s: float) -> _Answered:
        assert not service.startswith("edgebus.")
        self.sent += 1
        return _Answered(payload, arrays)

    send = send_request


class _Answered:
    def __init__(self, payload: bytes, arrays: object) -> None:
        self.payload, self.arrays = payload, arrays

    def result(self) -> _Answered:
        return self


def _traffic(direction: str, peer_id: str, frames: list[bytes]) -> Traffic:
    sizes = tuple(map(len, frames[1:]))
    return Traffic(1.0, direction, peer_id, "", "p", "control", frames[0], sizes, tuple(frames[1:]))  # type: ignore[arg-type]


def replays(data: bytes) -> None:
    """A recording that is sent again, whoever wrote it: as a file, and as headers and frames."""
    pieces = filter(None, map(split_frames, split_frames(data)))
    recorded = [_traffic(("in", "out")[at % 2], f"id{at // 2}", frames) for at, frames in enumerate(pieces)]
    try:
        read = list(Reader(io.BytesIO(data), max_record_bytes=1 << 20))
    except EdgebusError:
        read = []
    for records in (recorded, read):
        for direction in ("in", "out"):
            link = _Echo()
            tally = Replay(link, direction=direction, speed=float("inf")).run(records)  # type: ignore[arg-type]
            assert tally.sent == link.sent == tally.same + tally.different + tally.uncompared
            assert len(tally.differences) == min(tally.different, 100)


def journal_seeds() -> Iterator[bytes]:
    """A journal as it is written, the same as records, and records that are no results."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal"
        with Journal(path, KEY) as journal:
            journal.keep("laws", [0.5, 1.0])
            journal.keep("count", {"a": 1})
        whole = path.read_bytes()
    yield whole
    yield whole[:-1] + bytes([whole[-1] ^ 1])
    yield join_frames([KEY, b"\x92\xa4laws\xc4\x01\xc0"])
    yield join_frames([KEY, b"\x92\xa1a\xc4\x02\xff\xff", b"not msgpack"])


def publisher_seeds() -> Iterator[bytes]:
    """Both files of a key, always the same one, and halves that do not belong together."""
    with tempfile.TemporaryDirectory() as folder, unittest.mock.patch("os.urandom", lambda size: bytes(range(size))):
        generate_signing_key(folder)
        yield (Path(folder) / SECRET_FILE).read_bytes()
        yield (Path(folder) / PUBLIC_FILE).read_bytes()
        secret = (Path(folder) / SECRET_FILE).read_bytes()
        yield secret.replace(b"00010203", b"ffffffff")


def conversation_seeds() -> Iterator[bytes]:
    """One with settings and turns."""
    made = Conversation(Settings(system="be kind", max_tokens=9, sampling=Sampling(temperature=0.5, seed=3)))
    made.answered("grüße", "ho\n")
    yield made.to_json("target")


def vocabulary_seeds() -> Iterator[bytes]:
    """A small one."""
    yield encode(Vocabulary([b"", b"a", b"\xff", b"ab"], [0]))


def prompt_seeds() -> Iterator[bytes]:
    """Lines and JSON strings, some twice; and a note of settings."""
    yield b'one\ntwo\n"three\\nlines"\nfour\nfive\n\n "six"\none\nseven\neight\nnine\n'
    with tempfile.TemporaryDirectory() as folder:
        keep_settings(Path(folder), DistillSettings("t", steps=1), {"vocabulary": "x"})
        yield (Path(folder) / "settings.json").read_bytes()


def replay_seeds() -> Iterator[bytes]:
    """A request with its answer, one refused, and one that goes in pieces; and the recording of the first."""
    request = m.encode_header(m.Request(5, "s\x1b", 1000, 0, (m.ArraySpec("u1", (3,)),)))
    asked, answered = [request, b"payload", b"abc"], [m.encode_header(m.Reply(5)), b"another"]
    refused = [m.encode_header(m.Refusal(5, "busy\n", "later")), b""]
    pieces = [m.encode_header(m.Request(7, "t", 1000, 0, (), None, None, m.Transfer(1, (4,))))]
    chunk = [m.encode_header(m.Chunk(1, 0)), b"abcd"]
    for frames in ([asked, answered], [asked, refused], [pieces, [], chunk]):
        yield join_frames([join_frames(each) for each in frames])
    file = io.BytesIO()
    writer = Writer(file, Start("node", 1.5, "edgebus"))
    for direction, frames in (("in", asked), ("out", answered)):
        writer.write(_traffic(direction, "id", frames))
    yield file.getvalue()


TARGETS = {
    "journals": journals,
    "conversations": conversations,
    "vocabularies": vocabularies,
    "prompts": prompts,
    "replays": replays,
} | ({"publishers": publishers} if find_spec("nacl") else {})
SEEDS = {
    "journals": journal_seeds,
    "publishers": publisher_seeds,
    "conversations": conversation_seeds,
    "vocabularies": vocabulary_seeds,
    "prompts": prompt_seeds,
    "replays": replay_seeds,
}
