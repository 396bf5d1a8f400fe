"""A server process to be flooded: it echoes, within small bounds."""

import ctypes
import os
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


def nap(request):
    """Wait until a line comes, as for something that computes: other threads may run, but none reads the sockets."""
    print("stalled", flush=True)
    os.read(line_came, 1)


if __name__ == "__main__":
    line_came, line_comes = os.pipe()
    with edgebus.Node("flooded", insecure=True, limits=edgebus.Limits(**LIMITS)) as node:
        node.handle("work", lambda request: request.reply(b"echo:" + request.payload))
        node.handle("stall", stall)
        node.handle("nap", nap)
        print(node.bind("tcp://127.0.0.1:0"), flush=True)
        for _ in sys.stdin:
            os.write(line_comes, b"x")
        os.close(line_comes)
