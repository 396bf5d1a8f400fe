"""Nets and artefacts of the demonstration: made once, and reused while nothing they depend on has changed."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

import qpart
from edgebus.files import write_whole
from qpart.demo import processes
from qpart.demo.roles import NETS

Say = Callable[[str], None]


def artefacts(nets: Path, say: Say) -> dict[str, Path]:
    """Calibrate every net, unless net, images, settings and our code are those of the artefact that is there."""
    found = {}
    for name, (limit, patterns) in NETS.items():
        net, images, out = nets / f"{name}.pt2", nets / "calibration_images.npy", nets / f"{name}.qpart"
        key, stamp = _key(net, images, limit, patterns), nets / f"{name}.key"
        if out.is_file() and stamp.is_file() and stamp.read_text() == key:
            say(f"{name}: calibrated before, {out} is reused (same net, images, settings and code)")
        else:
            say(f"{name}: qpart calibrate, {limit:,} images without labels at most, {patterns} random patterns")
            processes.calibrate(net, images, out, limit=limit, patterns=patterns)
            write_whole(stamp, key.encode())
        found[name] = out
    return found


def _key(net: Path, images: Path, *settings: int) -> str:
    digest = blake2b(repr(settings).encode(), digest_size=16)
    code = sorted(file for folder in qpart.__path__ for file in Path(folder).glob("*.py"))
    for path in (net, images, *code):
        digest.update(path.read_bytes())
    return digest.hexdigest()
