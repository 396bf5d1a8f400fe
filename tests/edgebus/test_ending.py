"""The end of the interpreter, which ends daemon threads wherever they are: in the middle of a node's work, too."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.edgebus.test_interrupts import PLAIN

pytestmark = pytest.mark.net
CODE = """
import sys, threading, types
import edgebus

server, device = edgebus.Node("s", insecure=True), edgebus.Node("d", insecure=True)
link = device.connect(server.bind("tcp://127.0.0.1:0"))
held, never, main = threading.Event(), threading.Event(), threading.main_thread()

def tap(event):
    if threading.current_thread() is not main:
        held.set()
        never.wait()  # with the node's lock

class Last:
    def __init__(self, last):
        self.last = last

    def __del__(self):
        print("ends", flush=True)
        self.last()

device.tap(tap)
sys.modules["kept"] = kept = types.ModuleType("kept")
kept.last = Last(device.close if sys.argv[1] == "close" else lambda: link.send_request("x"))
del kept
threading.Thread(target=link.send, args=("x",), daemon=True).start()
held.wait()
"""


@pytest.mark.skipif(PLAIN, reason="threading's own locks wait for ever")
@pytest.mark.parametrize("last", ["close", "send"])
def test_what_an_ended_thread_was_in_the_middle_of_is_not_waited_for_as_the_interpreter_ends(last):
    done = subprocess.run([sys.executable, "-c", CODE, last], capture_output=True, text=True, timeout=10, check=True)
    assert done.stdout == "ends\n"
    assert "the interpreter ends" in done.stderr
