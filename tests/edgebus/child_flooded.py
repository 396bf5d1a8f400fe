"""A server process to be flooded: it echoes, within small bounds."""

import ctypes
import sys

import edgebus

MIB = 1 << 20
LIMITS = {
    "max_frame_bytes": 4 * MIB,
    "max_pending_bytes": 8 * MIB,
    "max_outstanding_bytes": 8 * MIB,
    "bulk_bytes": 4 * MIB,
    "cache_bytes": MIB,
}
if __name__ == "__main__":
    with edgebus.Node("flooded", insecure=True, limits=edgebus.Limits(**LIMITS)) as node:
        node.handle("work", lambda request: request.reply(b"echo:" + request.payload))
        # PyDLL keeps Python's lock: meanwhile nobody reads what libzmq receives.
        node.handle("stall", lambda request: ctypes.PyDLL(None).usleep(int(request.payload)) or request.reply(b"done"))
        print(node.bind("tcp://127.0.0.1:0"), flush=True)
        sys.stdin.read()
