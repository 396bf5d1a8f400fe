"""A directory of blobs that somebody has written in: what is handed out is what its address says all the same."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from edgebus.blobs import BlobStore, BlobStoreFull
from edgebus.blobs.manifest import Manifest, manifest_of
from tests.fuzz.source import Source

CHUNK_BYTES = 4096
BUDGET_BYTES = 40_000
CONTENTS = tuple(bytes((7 * i + n) % 251 for i in range(size)) for n, size in enumerate((10_000, 8192, 1, 0)))


@functools.cache
def _manifests() -> tuple[Manifest, ...]:
    return tuple(manifest_of(content, CHUNK_BYTES) for content in CONTENTS)


class StoreWorld:
    """A store, and its directory with whatever an attacker or a failing disk puts there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = BlobStore(path, BUDGET_BYTES)
        self.is_odd = False  # something lies there that is no file: then the system may refuse

    def damage(self, source: Source) -> None:
        """Put a file there, under a name that means something."""
        number = source.below(len(CONTENTS))
        manifest = _manifests()[number]
        sort = source.below(6)
        content = CONTENTS[number]
        if sort == 2:
            content = manifest.encode()
        name = manifest.blob_id + ("", ".part", ".manifest", ".part", "", "")[sort]
        if sort == 5:
            name = (f"{'ab' * 16}.put", f".{manifest.blob_id}.manifest-xyz", "note.txt")[source.below(3)]
        path = self.path / name
        with contextlib.suppress(OSError):
            path.unlink()
        match source.below(16):
            case 0:
                path.mkdir()
                self.is_odd = True
                return
            case 1:
                os.mkfifo(path)
                self.is_odd = True
                return
            case 2:
                path.symlink_to("/dev/zero")
                self.is_odd = True
                return
            case 3:
                content = source.blob()
        changed = bytearray(content)
        for _ in range(source.below(3)):
            if changed:
                changed[(source.below(256) * 41) % len(changed)] ^= 1 + source.below(255)
        end = (len(changed), len(changed), len(changed) // 2, max(0, len(changed) - 1), 16, 0)[source.below(6)]
        path.write_bytes(changed[:end])
        if source.below(8) == 7:
            os.truncate(path, (1 << 40, 50_000, 12_288)[source.below(3)])

    def use(self, source: Source) -> None:
        """One thing that applications and servers do with it."""
        number = source.below(len(CONTENTS))
        manifest, content = _manifests()[number], CONTENTS[number]
        store, blob_id = self.store, manifest.blob_id
        match source.below(9):
            case 0 | 1:
                found = store.get(blob_id, max_bytes=(None, 20_000)[source.below(2)])
                assert found is None or found.tobytes() == content
            case 2:
                read = store.manifest(blob_id)
                assert read is None or read.encode() == manifest.encode()
            case 3:
                index = source.below(4)
                chunk = store.chunk(blob_id, index)
                assert chunk is None or chunk == content[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
            case 4 | 5:
                self._fetch(manifest, content, source)
            case 6:
                assert store.put(content, chunk_bytes=CHUNK_BYTES) == blob_id
                found = store.get(blob_id)
                assert found is not None
                assert found.tobytes() == content
            case 7:
                store.delete(blob_id)
                assert store.get(blob_id) is None
            case _:
                self.store = BlobStore(self.path, BUDGET_BYTES)
                stats = self.store.stats()
                assert self.is_odd or stats.used_bytes <= BUDGET_BYTES

    def _fetch(self, manifest: Manifest, content: bytes, source: Source) -> None:
        """Go on with what is there, or begin; bring what is missing; let go in the middle, or finish."""
        partial = self.store.resume(manifest.blob_id) or self.store.begin(manifest)
        try:
            assert partial.manifest.encode() == manifest.encode()
            present = set(partial.present())
            for index in set(range(manifest.num_chunks)) - present:
                if source.below(4) == 3:
                    return
                partial.write(index, content[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES])
            with partial.finish() as blob:
                assert blob.tobytes() == content
        finally:
            partial.close()


def stores(data: bytes) -> None:
    """Play a script of damages and uses; nothing wrong is handed out, and no descriptor is left open."""
    before, log = len(os.listdir("/proc/self/fd")), logging.getLogger("edgebus.blobs.store")
    log.addFilter(_is_no_warning)
    try:
        with tempfile.TemporaryDirectory() as folder:
            _play(StoreWorld(Path(folder)), Source(data))
    finally:
        log.removeFilter(_is_no_warning)
    assert len(os.listdir("/proc/self/fd")) == before


def _is_no_warning(record: logging.LogRecord) -> bool:
    return record.levelno > logging.WARNING


def _play(world: StoreWorld, source: Source) -> None:
    for _ in range(24):
        if not source:
            break
        try:
            world.damage(source) if source.below(2) else world.use(source)
        except BlobStoreFull:
            pass
        except OSError:
            assert world.is_odd


def store_seeds() -> Iterator[bytes]:
    """Scripts with a whole blob, parts, manifests and uses of them."""
    for first in range(4):
        yield bytes((first + 3 * n + n // 9) % 256 for n in range(150))
    put, part = bytes([0, 0, 6]), bytes([1, 0, 1, 9, 1, 5, 3, 0, 0])
    manifest = bytes([1, 0, 2, 9, 0, 0, 0])
    fetch, chunk = bytes([0, 0, 4, 0, 0, 0]), bytes([0, 0, 3, 1])
    yield put + chunk + part + fetch + chunk
    yield part + manifest + fetch + bytes([0, 0, 8]) + chunk + bytes([0, 0, 7])
    yield bytes([1, 1, 0, 9, 0, 0, 0]) + bytes([0, 1, 0, 0, 0, 1, 2, 0, 1, 5, 0, 0, 0]) + fetch


TARGETS = {"stores": stores} if os.path.isdir("/proc/self/fd") else {}
SEEDS = {"stores": store_seeds}
