"""Nets of linear layers that nobody calibrated, for what is shipped: of any depth, with plans that are known."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from qpart.artefact import Artefact, Extent
from qpart.effort import Effort
from qpart.executors.with_numpy import NumpyExecutor
from qpart.network import Network, Node, Parameters
from qpart.noise import law_of
from qpart.ops import Linear, Relu
from qpart.pieces import addresses_of, encode_pieces
from qpart.profile import ServerProfile
from qpart.quantiser import Range
from qpart.run.served import ServedModel
from qpart.sizes import all_sizes
from qpart.tables import WIDTHS, BudgetMap, Tables


class Measured(NamedTuple):
    """What a pattern did as a whole."""

    psi: float = 0.0
    changed: float = 0.0


def made_up(layers: tuple[int, ...], *, name: str = "made-up", seed: int = 0) -> Artefact:
    """A net of linear layers with ReLU between them that nobody calibrated: psi are 4^-bits, so plans are known."""
    nodes: list[Node] = []
    for before, after in pairwise(layers):
        nodes.append(Node(Linear(before, after), (len(nodes),)))
        nodes.append(Node(Relu(), (len(nodes),)))
    net, random = Network((layers[0],), tuple(nodes[:-1])), np.random.default_rng(seed)
    found = {}
    for node in net.parametric:
        rows, columns = net.nodes[node].op.weight_shape
        weight = random.normal(0, columns**-0.5, (rows, columns)).astype(np.float32)
        found[node] = Parameters(weight, random.normal(0, 0.1, rows).astype(np.float32))
    psi = (*(4.0**-bits for bits in WIDTHS[:-1]), 0.0)
    tables = Tables(
        network=net,
        weight_psi=dict.fromkeys(net.parametric, psi),
        live_psi=tuple(dict.fromkeys(live, psi) for live in net.live),
        **all_sizes(net)._asdict(),
        budget=BudgetMap((1e-5, 1e-3, 1e-1, 10.0), (0.001, 0.01, 0.1, 0.5)),
        levels=(),
    )
    samples = random.normal(size=(4, layers[0])).astype(np.float32)
    return Artefact(
        name=name,
        tables=tables,
        parameters=found,
        ranges={v: (Range(0.1, -1.0),) * len(WIDTHS) for live in net.live for v in live},
        piece_ids={node: addresses_of(encode_pieces(made)) for node, made in found.items()},
        inputs=samples,
        logits=NumpyExecutor(net.nodes, found.__getitem__).run({0: samples}, 0, net.num_nodes, [net.num_nodes])[
            net.num_nodes
        ],
        margin=1.0,
        shrink={},
        trials=(),
        seed=seed,
        weight_laws={node: law_of(psi) for node in net.parametric},
        value_laws={},
        verified=(),
        extent=Extent(effort=Effort(4, 0, 4, 4, True), row_inputs=4, rows=0, row_forwards=0),
        model_id=bytes([seed + 1]) * 16,
    )


def served(artefact: Artefact, **more) -> ServedModel:
    """Of which every plan holds."""
    executor = NumpyExecutor(artefact.network.nodes, artefact.parameters.__getitem__)
    return ServedModel(artefact, executor, lambda pattern: Measured(), ServerProfile(macs_per_s=1e10), **more)
