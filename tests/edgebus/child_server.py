"""A server process to be killed, stopped and restarted: `hold` says what it got and keeps it, `echo` answers."""

import sys

import edgebus

mode, endpoint = sys.argv[1:]
held = []
with edgebus.Node("child", insecure=True) as node:
    inbox = node.serve("work")
    print(node.bind(endpoint), flush=True)
    while (request := inbox.get(60)) is not None:
        if mode == "hold":
            held.append(request)
            print("got", flush=True)
        else:
            request.reply(b"echo:" + request.payload)
