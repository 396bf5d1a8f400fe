"""Two servers announce a service; a client asks the less loaded one, and the other one when that is gone.

Run: python examples/fail_over.py
"""

import edgebus
from edgebus.pool import Pool
from edgebus.services import announce


def start_server(name: str, load: float) -> tuple[edgebus.Node, str]:
    node = edgebus.Node(name, insecure=True)
    node.handle("greet", lambda request: request.reply(f"{name} greets {request.payload.decode()}".encode()))
    endpoint = node.bind("tcp://127.0.0.1:0")
    announce(node, "greet", [endpoint], load=load, capacity=8)
    return node, endpoint


def main() -> None:
    one, first = start_server("one", load=0.0)
    two, second = start_server("two", load=100.0)
    servers = [(first, None), (second, None)]
    with edgebus.Node("client", insecure=True) as client, Pool(client, servers, service="greet") as pool:
        pool.wait_ready(10, servers=2)
        while {each.load for each in pool.stats().members.values()} != {0.0, 100.0}:
            pool.request("edgebus.ping")  # until both have told how busy they are
        print(pool.request("greet", b"you").payload.decode())
        one.close()
        print(pool.request("greet", b"you", timeout_s=20, may_repeat=True).payload.decode())
        two.close()
        try:
            pool.request("greet", b"you", timeout_s=1, may_repeat=True)
        except edgebus.RemoteError:
            print("nobody is left")


if __name__ == "__main__":
    main()
