"""A file travels as a blob: put into a store, served, fetched over CURVE, verified, cached; the second time is free.

Run: python examples/blob_fetch.py
"""

import os
import tempfile
from pathlib import Path

import edgebus
from edgebus.blobs import BlobStore, fetch_blob, serve_blobs


def main(directory: Path) -> None:
    server_keys = edgebus.generate_keys(directory / "server")
    device_keys = edgebus.generate_keys(directory / "device")
    allow_file = directory / "server" / "allowed_keys"
    edgebus.add_to_allow_list(allow_file, directory / "device" / "node.key")
    (directory / "weights.bin").write_bytes(os.urandom(5_000_000))

    served = BlobStore(directory / "served")
    address = served.put(directory / "weights.bin")  # tell the device this; it proves every byte
    allow = edgebus.AllowList.from_file(allow_file)
    with (
        edgebus.Node("server", keys=server_keys, allow=allow) as server,
        serve_blobs(server, served) as service,
        edgebus.Node("device", keys=device_keys) as device,
    ):
        link = device.connect(server.bind("tcp://127.0.0.1:0"), server_key=server_keys.public)
        cache = BlobStore(directory / "cache", budget_bytes=64 << 20)
        for attempt in ("first", "second"):
            before = service.chunks
            with fetch_blob(link, address, cache, timeout_s=30) as blob:
                print(f"{attempt} time: {blob.size} bytes, {service.chunks - before} chunks fetched")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
