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


def stall(request):
    """Keep Python's lock until the input ends: meanwhile nobody reads what libzmq receives."""
    print("stalled", flush=True)
    ctypes.PyDLL(None).read(0, ctypes.create_string_buffer(1), 1)


if __name__ == "__main__":
    with edgebus.Node("flooded", insecure=True, limits=edgebus.Limits(**LIMITS)) as node:
        node.handle("work", lambda request: request.reply(b"echo:" + request.payload))
        node.handle("stall", stall)
        print(node.bind("tcp://127.0.0.1:0"), flush=True)
        sys.stdin.read()
