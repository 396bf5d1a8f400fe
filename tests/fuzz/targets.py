"""What is fuzzed: functions of bytes that raise only if a promise is broken.

Every one reads what a peer, a file or libzmq hands over. A refusal is an exception of the kind the decoder promises;
anything else, and anything that is accepted and then cannot be used, is a finding.
"""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Callable, Iterator

import msgpack
from edgekernels.gguf import GgufError, GgufFile
from edgekernels.safetensors import SafetensorsError, SafetensorsFile

from edgebus.blobs.manifest import BlobId, Head, _head_hash
from edgebus.blobs.messages import (
    Ask,
    HaveAnswer,
    ManifestAnswer,
    decode_ask,
    decode_contents,
    encode_contents,
)
from edgebus.daemon.reports import StatsReport
from edgebus.daemon.tapping import TapRequest
from edgebus.directory import Directory, decode_record
from edgebus.errors import EdgebusError
from edgebus.grants import MAX_LIST_BYTES, format_line, parse_line, parse_list
from edgebus.keyfiles import fields_of, is_key
from edgebus.payloads import Payload, decode, encode
from edgebus.recorder import Reader, Start, Traffic, Writer, decode_records, encode_records
from edgebus.replica import Replica
from edgebus.state import Entry, Part, Publication, Subscribe
from edgebus.zap import zap_answer
from tests.fuzz import (
    answers,
    bulk_parts,
    disk_parts,
    http_parts,
    lane_world,
    lease_parts,
    model_dirs,
    model_files,
    near_parts,
    network_parts,
    qpart_parts,
    served_world,
    settings_files,
    shm_parts,
    sled_parts,
    socket_world,
    store_world,
    wire_parts,
)  # fmt: skip
from tests.fuzz.hub_world import attack
from tests.fuzz.source import Source, join_frames, split_frames
from tests.vectors.golden import OLD_VECTORS, VECTORS, frames_of

KEY = "0123456789abcdefghijklmnopqrstuvwxyzABCD"


def hub(data: bytes) -> None:
    """A whole hub in any state."""
    attack(data)


_PAYLOADS: tuple[type[Payload], ...] = (
    Subscribe, Part, Entry, ManifestAnswer, HaveAnswer, StatsReport, TapRequest,
)  # fmt: skip


def payloads(data: bytes) -> None:
    """Payloads of the bus's own services."""
    source = Source(data)
    kind = _PAYLOADS[source.below(len(_PAYLOADS))]
    body = data[1:]
    try:
        payload = decode(kind, body)
    except ValueError:
        return
    assert _same(decode(kind, encode(payload)), payload)


def blobs(data: bytes) -> None:
    """Questions about blobs, and heads whose hash is right but whose sizes may lie."""
    try:
        asked: Ask = decode_ask(data)
        assert decode_ask(encode(asked)) == asked
    except ValueError:
        pass
    with contextlib.suppress(ValueError):
        records = decode_contents(data, 4)
        assert 1 <= len(records) <= 4
        assert encode_contents(records) == data
    try:
        head = Head.decode(data, BlobId(_head_hash(data).hex()))
    except ValueError:
        return
    assert head.encode() == data
    assert head.manifest_bytes >= len(data)


def recorder(data: bytes) -> None:
    """A recording, as a file and as the part of a tap."""
    try:
        reader = Reader(io.BytesIO(data), max_record_bytes=1 << 20)
        records = list(itertools.islice(reader, 1000))
    except EdgebusError:
        records = []
    for record in records:
        assert isinstance(record, Traffic) or record.count >= 0
    try:
        decoded = decode_records(data)
    except ValueError:
        return
    assert len(decode_records(encode_records(decoded))) == len(decoded)


def state(data: bytes) -> None:
    """A subscriber that gets any parts, in any order, and a publisher that is asked anything."""
    replica, publication = Replica(max_keys=8, max_bytes=4096), Publication(b"epoch123", max_keys=8)
    publication.set("key", b"value")
    replica.subscribe()
    for piece in split_frames(data):
        with contextlib.suppress(ValueError):
            replica.apply(decode(Part, piece))
        assert len(replica) <= 8
        assert sum(len(key.encode()) + len(value) for key, value in replica.snapshot().items()) <= 4096
        try:
            wanted = decode(Subscribe, piece)
        except ValueError:
            continue
        cursor = publication.open(wanted)
        for _ in range(10):
            found = publication.next_part(cursor, wanted.part_bytes)
            if found is None:
                break
            cursor = found[1]
        else:
            raise AssertionError("a publication of one key has no end")


def directory(data: bytes) -> None:
    """Records of services from anybody about anybody."""
    source = Source(data)
    now = 0.0
    found = Directory(max_records=6, max_services=3)
    for _ in range(20):
        if not source:
            break
        who = (KEY, "name:a", "name:b")[source.below(3)]
        record_id, value = str(source.below(4)), source.blob()
        with contextlib.suppress(ValueError):
            record_id = decode_record(value).id if source.below(4) else record_id
        match source.below(4):
            case 0:
                found.withdraw(record_id, source=who, now=now)
            case 1:
                now += source.below(100)
                found.handle_timer(now=now)
            case _:
                found.heard(who, now=now)
                found.merge(record_id, value, source=who, trusted=source.below(2) == 1, now=now)
        assert len(found) <= 6
        found.events()
        found.next_timer()


def allow_list(data: bytes) -> None:
    """The allow-list: whatever stands there, only whole lines grant, and what is granted can be written again."""
    text = data.decode("utf-8", "replace")[:MAX_LIST_BYTES]
    parsed = parse_list(text)
    again = parse_list(text, parsed.lines)
    assert (again.grants, again.problems) == (parsed.grants, parsed.problems)
    for raw in text.split("\n"):
        line = parse_line(raw)
        if line is not None and line.key is not None and line.grant is not None:
            assert is_key(line.key)
            back = parse_line(format_line(line.key, line.name, line.options, line.comment))
            assert back is not None
            assert (back.key, back.grant) == (line.key, line.grant)
    assert all(is_key(key) for key in parsed.grants)
    for problem in parsed.problems.values():
        assert "\n" not in problem


def keys(data: bytes) -> None:
    """Key files."""
    text = data.decode("utf-8", "replace")
    for name in ("public-key", "secret-key"):
        assert all(is_key(value) for value in fields_of(text, name))


class _AllowOne:
    """An allow-list with the one key of 32 zero bytes in it."""

    def permits(self, key: str) -> bool:
        assert is_key(key)
        return key == "0" * 40


def zap(data: bytes) -> None:
    """What libzmq asks of whom may connect: only a whole question about a listed key is answered yes."""
    frames = split_frames(data)
    answer = zap_answer(frames, _AllowOne())  # type: ignore[arg-type]
    assert len(answer) == 6
    assert answer[1] == (frames[1] if len(frames) > 1 else b"")
    good = len(frames) == 7 and [frames[i] for i in (0, 2, 5, 6)] == [b"1.0", b"edgebus", b"CURVE", bytes(32)]
    assert (answer[2] == b"200") == good
    assert zap_answer(frames, None)[2] == b"400"


def gguf(data: bytes) -> None:
    """A model file in GGUF: refused, or every tensor in it can be read."""
    with model_files.on_disk(data, ".gguf") as path, contextlib.suppress(GgufError), GgufFile(path) as file:
        for name, info in file.tensors.items():
            assert file.read(name).shape == info.shape
            if info.type_name.startswith("Q"):
                codes = file.read_codes(name)
                assert codes.codes.max() < 2**codes.bits


def safetensors(data: bytes) -> None:
    """A model file in safetensors, likewise; and the same bytes as an index, whose shards are not there."""
    with (
        model_files.on_disk(data, ".safetensors") as path,
        contextlib.suppress(SafetensorsError),
        SafetensorsFile(path) as file,
    ):
        for name, info in file.tensors.items():
            assert file.read(name).shape == info.shape
    with model_files.on_disk(data, ".json") as path, contextlib.suppress(SafetensorsError, OSError):
        SafetensorsFile(path).close()


def _same(one: object, other: object) -> bool:
    return one == other or repr(one) == repr(other)  # not-a-numbers are not equal to themselves


TARGETS: dict[str, Callable[[bytes], None]] = {
    "wire": wire_parts.wire,
    "hub": hub,
    "payloads": payloads,
    "near": near_parts.near,
    "packets": near_parts.packets,
    "blobs": blobs,
    "recorder": recorder,
    "state": state,
    "directory": directory,
    "allow_list": allow_list,
    "keys": keys,
    "zap": zap,
    "gguf": gguf,
    "safetensors": safetensors,
    "decoders": model_files.decoders,
    "settings": settings_files.settings,
    "boards": settings_files.boards,
    "metrics": http_parts.metrics,
    "completions": http_parts.completions,
    "forms": http_parts.forms,
    "networks": qpart_parts.networks,
    "segments": qpart_parts.segments,
    "pieces": qpart_parts.pieces,
    "asks": qpart_parts.asks,
    "artefacts": qpart_parts.artefacts,
    "datasets": qpart_parts.datasets,
    "answers": answers.answers,
    "served": served_world.attack,
    "told": sled_parts.told,
    "saved": sled_parts.saved,
    "kept": sled_parts.kept,
    **bulk_parts.TARGETS,
    **shm_parts.TARGETS,
    **lease_parts.TARGETS,
    **store_world.TARGETS,
    **disk_parts.TARGETS,
    **network_parts.TARGETS,
    **model_dirs.TARGETS,
}
SOCKET_TARGETS: dict[str, Callable[[bytes], None]] = {"sockets": socket_world.say, **lane_world.TARGETS}
"""What needs sockets, and so is fuzzed by tests.fuzz.run alone."""


_SEEDS = {
    **near_parts.SEEDS,
    **model_files.SEEDS,
    **settings_files.SEEDS,
    **http_parts.SEEDS,
    **qpart_parts.SEEDS,
    **answers.SEEDS,
    "served": served_world.seeds,
    **sled_parts.SEEDS,
    **bulk_parts.SEEDS,
    **shm_parts.SEEDS,
    **lease_parts.SEEDS,
    **store_world.SEEDS,
    **disk_parts.SEEDS,
    **network_parts.SEEDS,
    **model_dirs.SEEDS,
    **lane_world.SEEDS,
}


def seeds(target: str) -> Iterator[bytes]:
    """Valid input to begin with, mostly made of the golden vectors."""
    said = [[bytes.fromhex(vector["hex"]), *frames_of(vector.get("frames", []))] for vector in (*VECTORS, *OLD_VECTORS)]
    match target:
        case "wire":
            yield from map(join_frames, said)
            yield from wire_parts.bound_seeds()
        case "hub":
            yield from (bytes([7, *range(n, 250, 3), *range(n)]) for n in range(0, 48, 3))
        case "sockets":
            yield socket_world.zmtp()
            yield from (socket_world.zmtp(socket_world.hello(), frames) for frames in said[:12])
        case "recorder":
            file = io.BytesIO()
            writer = Writer(file, Start("node", 1.5, "edgebus"))
            traffic = [
                Traffic(float(n), "in", "id", KEY, "peer", "bulk", frames[0], tuple(map(len, frames[1:])), ())
                for n, frames in enumerate(said)
            ]
            for record in traffic:
                writer.write(record)
            yield from (file.getvalue(), encode_records(traffic[:3]))
        case "state" | "payloads":
            publication = Publication(b"epoch123")
            publication.set("key", b"value")
            subscribe = Subscribe(attempt=1)
            part = publication.next_part(publication.open(subscribe), 4096)
            assert part is not None
            bodies = [encode(part[0]), encode(subscribe)]
            yield from (
                map(join_frames, [bodies, bodies[::-1]])
                if target == "state"
                else (bytes([n]) + body for body in bodies for n in range(len(_PAYLOADS)))
            )
        case "blobs":
            vectors = [[tag, bytes(32), 0][:size] for tag, size in ((1, 2), (2, 3), (3, 3))]
            yield from (msgpack.packb(plain) for plain in [*vectors, [4, [bytes(32)]], [5, [bytes(32)]]])
            yield encode_contents([b"hello", None, b""])
            yield b"EBM1" + bytes.fromhex("000010000500000000000000") + bytes(32)
        case "directory":
            record = msgpack.packb(["s", "a", "", ["tcp://127.0.0.1:1"], 5, 1, 0.5, 4.0, {"zone": "x"}])
            yield b"".join(bytes([1, 0, len(record)]) + record + b"\1\2\1" for _ in range(4))
        case "allow_list":
            yield f"# devices\n{KEY} phone services=sled.*,edgebus.ping burst=5 requests_per_s=2\n{KEY}x\n".encode()
            yield f"{KEY} a b deny=x until=2031-12-31T18:00Z bytes_per_s=1MiB max_links=2 # c".encode()
        case "keys":
            yield f'metadata\ncurve\n    public-key = "{KEY}"\n    secret-key = "{KEY}"\n'.encode()
        case "zap":
            yield join_frames([b"1.0", b"7", b"edgebus", b"127.0.0.1", b"", b"CURVE", bytes(32)])
            yield join_frames([b"1.0", b"7", b"edgebus", b"127.0.0.1", b"", b"NULL"])
        case _:
            yield from _SEEDS[target]()
