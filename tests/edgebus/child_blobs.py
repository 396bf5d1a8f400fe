"""Processes that use a blob store, to be killed or to compete; see test_blobs_store.py and test_blobs_net.py."""

import contextlib
import random
import sys
from pathlib import Path

import edgebus
from edgebus.blobs import BlobStore, BlobStoreFull, fetch_blob, serve_blobs
from edgebus.blobs.manifest import manifest_of

CHUNK = 4096
mode, directory, *rest = sys.argv[1:]


def say(text):
    print(text, flush=True)


def wait_to_be_killed():
    sys.stdin.readline()


class Halfway:
    """A file that stops in the middle."""

    def __init__(self):
        self._left = 1

    def read(self, size):
        if self._left:
            self._left -= 1
            return bytes(size)
        say("halfway")
        wait_to_be_killed()
        return b""


def compete(seed):
    """Put, read and delete at random what the others do too; prints the most bytes it saw in use."""
    store = BlobStore(directory, int(rest[0]))
    chance = random.Random(seed)
    most = 0
    for _ in range(150):
        number = chance.randrange(12)
        content = random.Random(number).randbytes((1 + number % 3) * CHUNK)
        try:
            blob_id = store.put(content, chunk_bytes=CHUNK)
        except BlobStoreFull:
            continue
        with store._directory.locked():
            most = max(most, sum(entry.size for entry in store._directory.entries()))
        blob = store.get(blob_id)
        if blob is not None and blob.view != content:
            say("wrong content")
            return
        if chance.random() < 0.1:
            store.delete(blob_id)
    say(f"right {most}")


def fill_up():
    """Another program takes what is left: not a block is there, not even for a manifest."""
    with Path(directory, "others").open("ab", buffering=0) as others, contextlib.suppress(OSError):
        while True:
            others.write(bytes(4096))


def small():
    """A file system smaller than the budget."""
    store = BlobStore(directory, 1 << 30)
    first, second = (store.put(bytes([number]) * 150_000) for number in (1, 2))
    if not store.has(first):
        say("evicted the first")
    blob = store.get(second)
    try:
        store.put(bytes(200_000))
    except BlobStoreFull as error:
        say("full" if "is full" in str(error) else str(error))
    if store.get(second).view == bytes([2]) * 150_000 == blob.view:
        say("the second is whole")
    blob.close()
    fill_up()
    manifest = manifest_of(b"small")
    third, arriving = manifest.blob_id, store.begin(manifest)
    arriving.write(0, b"small")
    arriving.finish().close()
    if store.has(third) and not store.has(second):
        say("the second made room")
    fill_up()
    held = store.get(third)
    try:
        store.begin(manifest_of(b"more", 4096))
    except BlobStoreFull as error:
        say("full" if "is full" in str(error) else str(error))
    names = {file.name for file in Path(directory).iterdir()}
    if names == {".lock", "others", str(third), f"{third}.manifest"} and held.view == b"small":
        say("nothing lies about")


match mode:
    case "hold":
        blob = BlobStore(directory, int(rest[0])).get(rest[1])
        say("held" if blob is not None else "missing")
        wait_to_be_killed()
    case "put":
        BlobStore(directory, int(rest[0])).put(Halfway(), chunk_bytes=CHUNK)
    case "lock":
        with BlobStore(directory, int(rest[0]))._directory.locked():
            say("locked")
            wait_to_be_killed()
    case "compete":
        compete(int(rest[1]))
    case "small":
        small()
    case "serve":
        with edgebus.Node("child", insecure=True) as node, serve_blobs(node, BlobStore(directory)):
            say(node.bind(rest[0]))
            wait_to_be_killed()
    case "fetch":
        with edgebus.Node("child", insecure=True) as node:
            link = node.connect(rest[0])
            fetch_blob(link, rest[1], BlobStore(directory), window=1, progress=lambda done, size: say(f"{done} {size}"))
            say("done")
