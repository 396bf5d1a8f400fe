"""What would be done for three boards, three times, and how others would do: no server, no device.

Run: python examples/plan_for_boards.py
"""

import numpy as np
import torch

from qpart import Channel, Infeasible, Request, ServerProfile, explain, profiles
from qpart.baselines import BASELINES, Case, exact
from qpart.calibrate import calibrate
from qpart.graph import trace
from qpart.plan import plan
from qpart.solve import Solver


def main() -> None:
    torch.manual_seed(0)
    nn = torch.nn
    convs = [nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, 2, 1)]
    net = nn.Sequential(*convs, nn.ReLU(), nn.Flatten(), nn.Linear(512, 10))
    inputs = np.random.default_rng(0).normal(size=(400, 3, 32, 32)).astype(np.float32)  # yours: like those to come
    model = calibrate(*trace(net, torch.randn(2, 3, 32, 32)), inputs, name="toy", num_patterns=60)
    solver, server = Solver(model.tables), ServerProfile(macs_per_s=1e11, price_per_s=1e-4)

    for board in profiles.names():
        for rate, inferences in ((1e5, 1), (1e7, 1), (1e5, 10_000)):
            request = Request(
                accuracy=0.05,
                device=profiles.device(board),
                channel=Channel(up_bits_per_s=rate, down_bits_per_s=2 * rate, round_trip_s=0.002),
                inferences=inferences,
            )
            try:
                found = plan(solver, request, server, shrink=model.shrink)
            except Infeasible as refusal:
                print(f"{board}, {explain.rate(rate)}, x{inferences}: {refusal}")
                continue
            print(f"{board}, {explain.rate(rate)}, x{inferences}: {explain.reason(found)}")

    case = Case(solver, request, server, model.shrink)
    best = exact(case)
    assert best is not None
    for name, decide in BASELINES.items():
        other = decide(case)
        if other is not None and other.holds:
            print(f"{name}: x{other.row.objective / best.row.objective:.2f} at cut {other.row.cut}")


if __name__ == "__main__":
    main()
