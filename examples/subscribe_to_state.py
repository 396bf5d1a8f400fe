"""A server publishes small state; a device follows it, through a restart of the server.

Run: python examples/subscribe_to_state.py
"""

import edgebus
from edgebus.replica import Changed
from edgebus.subscribing import Subscription, subscribe


def publish(node: edgebus.Node, state: dict[str, bytes]) -> None:
    for key, value in state.items():
        node.publish("weather", key, value)


def show(subscription: Subscription, changes: int) -> None:
    for _ in range(changes):
        event = subscription.next(timeout_s=20)
        print(f"{event.key} = {event.value.decode()}" if isinstance(event, Changed) else f"{event.key} is gone")


def main() -> None:
    with edgebus.Node("device", insecure=True) as device:
        with edgebus.Node("server", insecure=True) as server:
            endpoint = server.bind("tcp://127.0.0.1:0")
            publish(server, {"wind": b"strong", "rain": b"none"})
            weather = subscribe(device.connect(endpoint), "weather", timeout_s=10)
            show(weather, changes=2)
            publish(server, {"wind": b"weak"})
            show(weather, changes=1)
        print("the server restarts; the last known wind is", weather.get("wind", b"?").decode())
        with edgebus.Node("server", insecure=True) as server:
            publish(server, {"wind": b"weak", "sun": b"some"})  # only what differs is a change
            server.bind(endpoint)
            show(weather, changes=2)
            weather.close()


if __name__ == "__main__":
    main()
