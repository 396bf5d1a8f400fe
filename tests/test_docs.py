"""What the documents say is what the files hold."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

import numpy as np

from bench import report
from qpart.messages import SERVICES as QPART_SERVICES
from qpart.network import Parameters
from qpart.ops import AnyOp
from qpart.pieces import encode_pieces
from sled.messages import SERVICES
from sled.metrics import HELP
from sled.settings import ServeSettings

ROOT = Path(__file__).parents[1]


def test_readme_shows_the_committed_figures():
    text = (ROOT / "README.md").read_text()
    assert report.rendered(text) == text, "run python -m bench.report"


def test_readme_table_has_a_row_for_every_committed_headline():
    figures = json.loads((ROOT / "bench/results/figures.json").read_text())
    assert {key for _, key, _ in report.ROWS} <= set(figures)


def test_protocol_spec_names_every_service():
    spec = (ROOT / "docs/spec/sled-protocol.md").read_text()
    assert set(re.findall(r"`(sled\.[a-z]+)`", spec)) == set(SERVICES)


def test_protocol_spec_names_every_refusal_the_server_makes():
    spec = (ROOT / "docs/spec/sled-protocol.md").read_text()
    files = [*(ROOT / "sled/server").glob("*.py"), *(ROOT / "sled/run").glob("*.py")]
    made = {
        code for file in files for code in re.findall(r'(?:Refusal|refuse)\(\s*(?:\w+, )?"(\w+)"', file.read_text())
    }
    assert made
    assert made <= set(re.findall(r"`(\w+)`", spec))


def test_server_guide_names_every_metric_and_setting():
    named = set(re.findall(r"`([a-z_]+)(?:\{[a-z]+\})?`", (ROOT / "docs/guide/server.md").read_text()))
    made = re.findall(r'(?:^|[ {(])"([a-z_]+)": ', (ROOT / "sled/run/server.py").read_text())
    assert set(made) - {"at_most_s", "chunks", "why", "rounds_refused"} <= named
    assert {*HELP, "drafted_at", "accepted_at", "refusals", "phase"} <= named
    assert set(ServeSettings.__struct_fields__) <= named


def test_qpart_spec_names_every_service_operation_and_refusal():
    spec = (ROOT / "docs/spec/qpart-protocol.md").read_text()
    assert set(re.findall(r"`(qpart\.[a-z]+)`", spec)) == set(QPART_SERVICES)
    named = set(re.findall(r"`([a-z_0-9]+)`", spec))
    assert {op.__struct_config__.tag for op in get_args(AnyOp)} <= named
    shells = "".join((ROOT / f"qpart/run/{name}.py").read_text() for name in ("server", "worker"))
    made = set(re.findall(r'refuse\(\s*[\w.\[\]]*request, "(\w+)"', shells))
    assert {"busy", "closing", "expired", "invalid"} <= made
    assert made <= named


def test_qpart_spec_shows_a_real_piece():
    weight, bias = np.array([[-15.75, -5.25, 5.25, 15.75]], np.float32), np.array([2], np.float32)
    content = encode_pieces(Parameters(weight, bias))[0]
    spec = (ROOT / "docs/spec/qpart-protocol.md").read_text().replace(" ", "")
    assert f"`{content.hex()}`" in spec


def test_every_package_is_covered_by_one_constraint():
    names = [line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    assert len(names) == len(set(names))
