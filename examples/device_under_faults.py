"""Test a device's code against a network that loses, repeats, freezes and crashes, on a virtual clock.

A device reads a water meter and a server adds up. After an unknown outcome the device asks again, which is right
only if the server knows a reading that it has already: random faults tell the right server from the careless one.

Run: python examples/device_under_faults.py
"""

import edgebus
from edgebus.testing import Script, SimNetwork, at, check_seeds, crash, duplicate, freeze, half_open, loss

READINGS = range(1, 9)


def report(link) -> None:
    """The device's code; a real edgebus.Link does as well."""
    for number in READINGS:
        for _attempt in range(50):
            try:
                link.request("meter", b"%d" % number, timeout_s=3.0)
                break
            except (edgebus.LinkLost, edgebus.DeadlineExceeded):
                pass  # perhaps it was added, perhaps not


def right(disk: list[bytes], reading: bytes) -> None:
    if reading not in disk:
        disk.append(reading)


def careless(disk: list[bytes], reading: bytes) -> None:
    disk.append(reading)


def run(seed: int, store) -> None:
    script = Script.random(seed, ["device", "server"], 8.0, kinds=[loss, duplicate, freeze, half_open])
    script += Script(at(2.0, crash("server", down_s=1.0)))  # its disk survives, its memory does not
    disk: list[bytes] = []

    def meter(request: edgebus.Request) -> None:
        store(disk, request.payload)
        server.call_later(0.5, request.reply)

    with SimNetwork(seed, script=script) as net:
        server = net.node("server", meter)
        report(net.connect(net.node("device"), server))
        total = sum(map(int, disk))
        assert total == sum(READINGS), f"the total is {total}, not {sum(READINGS)}"


check_seeds(lambda seed: run(seed, right), range(50))
print("50 seeds: every reading is counted once")
try:
    check_seeds(lambda seed: run(seed, careless), range(50))
except AssertionError as error:
    print(f"careless server: {error}; {error.__notes__[-1]}")
