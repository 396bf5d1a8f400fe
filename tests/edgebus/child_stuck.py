"""A process whose node reads nothing for a while: it dials, then keeps Python's lock until a line comes."""

import ctypes
import json
import sys

import edgebus

if __name__ == "__main__":
    with edgebus.Node("stuck", insecure=True, limits=edgebus.Limits(**json.loads(sys.argv[2]))) as node:
        link = node.connect(sys.argv[1])
        print("stuck", flush=True)
        ctypes.PyDLL(None).read(0, ctypes.create_string_buffer(1), 1)
        sys.stdin.read()
