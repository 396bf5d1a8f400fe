"""Calibrate a network of your own, serve it, and run it on two sides.

Run: python examples/split_a_network.py DIRECTORY_FOR_KEYS_AND_FILES
"""

import sys
import threading
from pathlib import Path

import numpy as np
import torch

import edgebus
from qpart import Channel, Device, DeviceProfile, PieceCache, Request, artefact
from qpart.calibrate import calibrate
from qpart.graph import trace
from qpart.messages import SERVICES
from qpart.run.models import make_served
from qpart.run.published import serve_pieces
from qpart.run.server import PlanServer


def main(directory: Path) -> None:
    torch.manual_seed(0)
    nn = torch.nn
    head = nn.Sequential(nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten())
    net = nn.Sequential(head, nn.Linear(392, 64), nn.ReLU(), nn.Linear(64, 4))
    network, parameters = trace(net, torch.randn(2, 1, 14, 14))
    inputs = np.random.default_rng(0).normal(size=(500, 1, 14, 14)).astype(np.float32)  # yours: like those to come
    model = artefact.save(calibrate(network, parameters, inputs, name="mine"), directory / "mine.qpart")
    for name in ("server", "device"):
        edgebus.generate_keys(directory / name)
    allowed = directory / "server" / "allowed_keys"
    edgebus.add_to_allow_list(allowed, directory / "device" / "node.key")
    keys, allow = edgebus.load_keys(directory / "server"), edgebus.AllowList.from_file(allowed)
    with edgebus.Node("server", keys=keys, allow=allow) as node:
        served, _ = make_served(model)
        server, pieces = PlanServer(node.serve(*SERVICES), [served]), serve_pieces(node, [served.published])
        thread = threading.Thread(target=server.run)
        thread.start()
        endpoint = node.bind("tcp://127.0.0.1:0")
        key, cache = directory / "server" / "node.key", PieceCache(directory / "pieces")
        with Device(endpoint, server_key=key, keys=directory / "device", cache=cache) as device:
            profile = DeviceProfile(macs_per_s=1e8, joules_per_mac=1e-9, memory_bytes=1 << 16)
            channel = Channel(up_bits_per_s=1e5, down_bits_per_s=1e6)
            request = Request(accuracy=0.05, device=profile, channel=channel, inferences=1000, raw_input_stays=True)
            pattern = device.prepare(request).plan.pattern
            device.infer(inputs[:1])
            print(
                f"cut {pattern.cut} of {network.num_nodes}, weights at {pattern.weight_bits} bits, {pattern.up_bytes} B"
            )
        server.stop()
        thread.join()
        pieces.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
