"""A server process whose application sleeps, is busy, or holds the interpreter, as it is told on its standard input."""

import sys
import threading
import time

import edgebus

beat_s = float(sys.argv[1])
limits = edgebus.Limits(heartbeat_s=beat_s, silence_s=2 * beat_s)


def hold_interpreter(seconds):
    """Let no other thread have the interpreter, as a long call into C does."""
    sys.setswitchinterval(100)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass
    sys.setswitchinterval(0.005)


def do(words):
    for what, value in zip(words[::2], words[1::2], strict=True):
        match what:
            case "sleep":
                time.sleep(float(value))
            case "busy":
                node.busy(float(value))
            case "hog":
                hold_interpreter(float(value))
                node.busy(0)


with edgebus.Node("child", insecure=True, limits=limits) as node:
    inbox = node.serve("work")
    print(node.bind(sys.argv[2]), flush=True)
    orders = []
    threading.Thread(target=lambda: orders.extend(iter(sys.stdin.readline, "")), daemon=True).start()
    while True:
        if orders:
            words = orders.pop(0).split()
            print(words[0], flush=True)
            do(words)
        request = inbox.get(0.02)
        if request is not None:
            request.reply(b"done")
