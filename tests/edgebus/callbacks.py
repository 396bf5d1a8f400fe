"""How deep the callbacks of a service stand on top of each other."""

from __future__ import annotations

import threading
import time


def stacked(server, device, answer):
    """Have many requests wait behind the first one, and answer each in a callback.

    Args:
        server, device: the node that serves, and the one that asks.
        answer: called with each request.

    Returns:
        All replies, and how many callbacks there were at once at most.
    """
    depth, deepest, ready = [0], [0], threading.Event()

    def handle(request):
        depth[0] += 1
        deepest[0] = max(deepest[0], depth[0])
        if request.payload == b"first":
            ready.wait(5)
        time.sleep(0.001)
        answer(request)
        depth[0] -= 1

    server.handle("work", handle)
    link = device.connect(server.bind("tcp://127.0.0.1:0"))
    pending = [link.send_request("work", b"first")]
    pending += [link.send_request("work", b"next") for _ in range(50)]
    timer = threading.Timer(0.3, ready.set)
    timer.start()
    replies = [each.result() for each in pending]
    timer.join()
    return replies, deepest[0]
