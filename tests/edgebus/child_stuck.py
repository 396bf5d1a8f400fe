"""A process whose node reads nothing for a while: it dials, then keeps Python's lock until a line comes."""

import ctypes
import sys

import edgebus
from tests.edgebus.child_flooded import LIMITS

if __name__ == "__main__":
    with edgebus.Node("stuck", insecure=True, limits=edgebus.Limits(**LIMITS)) as node:
        link = node.connect(sys.argv[1])
        print("stuck", flush=True)
        ctypes.PyDLL(None).read(0, ctypes.create_string_buffer(1), 1)
        sys.stdin.read()
