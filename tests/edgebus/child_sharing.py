"""A server process for shared memory: `echo` gives back, `keep` holds on, `hold` answers in its second life only."""

import os
import sys

import edgebus
from edgebus import shm

endpoint, *options = sys.argv[1:]
if "--unseen" in options:
    shm.mapper.open_segment = lambda info: (_ for _ in ()).throw(shm.SegmentUnavailable("forbidden", "another user"))
kept = []
second_life = not endpoint.endswith(":0")
with edgebus.Node("child", insecure=True) as node:
    inbox = node.serve("echo", "keep", "hold")
    print(node.bind(endpoint), flush=True)
    while (request := inbox.get(60)) is not None:
        if request.service == "keep":
            kept.append(request.arrays)
            request.reply()
        elif request.service == "hold" and not second_life:
            kept.append(request)
        else:
            request.reply(request.payload, request.arrays)
os._exit(0)
