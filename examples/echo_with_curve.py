"""Two nodes on one machine, over tcp with CURVE: keys, allow-list, one request with an array.

Run: python examples/echo_with_curve.py
"""

import tempfile
import threading
from pathlib import Path

import numpy as np

import edgebus


def serve(inbox: edgebus.Inbox) -> None:
    while request := inbox.get():
        doubled = [array * 2 for array in request.arrays]
        request.reply(request.payload.upper(), doubled)


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        server_keys = edgebus.generate_keys(Path(directory) / "server")
        device_keys = edgebus.generate_keys(Path(directory) / "device")
        allow_file = Path(directory) / "server" / "allowed_keys"
        edgebus.add_to_allow_list(allow_file, Path(directory) / "device" / "node.key")

        allow = edgebus.AllowList.from_file(allow_file)
        with edgebus.Node("server", keys=server_keys, allow=allow) as server:
            endpoint = server.bind("tcp://127.0.0.1:0")
            inbox = server.serve("shout")
            threading.Thread(target=serve, args=(inbox,), daemon=True).start()

            with edgebus.Node("device", keys=device_keys) as device:
                link = device.connect(endpoint, server_key=server_keys.public)
                reply = link.request("shout", b"hello", [np.arange(4, dtype=np.float32)], timeout_s=5)
                print(reply.payload.decode(), reply.arrays[0].tolist())
            inbox.close()


if __name__ == "__main__":
    main()
