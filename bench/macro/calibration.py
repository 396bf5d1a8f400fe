"""How long calibrating a net of ResNet-18's size takes: 11 million parameters, images of 64 x 64 or 224 x 224.

`python -m bench.macro.calibration [--size 224]`, about 12 minutes alone on two cores (224: several times that).
Fashion-MNIST's images are enlarged to three channels and the net is trained on some of them for a minute, which is
enough for margins. Then `qpart calibrate` runs as a process of its own. Results go to bench/results/calibration.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from bench import record
from bench.nets.resnet18 import ResNet18
from qpart.demo import data
from qpart.demo.train import write_net

COMMAND = "python -m bench.macro.calibration"
OUT = Path(__file__).parents[2] / "build" / "resnet18"
TRAINED_AT, TRAIN_IMAGES, BATCH = 64, 4096, 64
WITHIN_S = 7200.0


def enlarged(images: np.ndarray, size: int) -> np.ndarray:
    """Grey images (n, 1, height, width) uint8 as (n, 3, size, size) uint8."""
    pixels = functional.interpolate(torch.from_numpy(images).float(), (size, size), mode="bilinear")
    return pixels.round().clamp(0, 255).byte().expand(-1, 3, -1, -1).contiguous().numpy()


def trained(dataset: data.Dataset, seed: int = 0) -> torch.nn.Module:
    """The net after one pass over some images."""
    torch.manual_seed(seed)
    net = ResNet18(data.NUM_CLASSES).to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(net.parameters(), 1e-3)
    labels = torch.from_numpy(dataset.train_labels)
    for start in range(0, TRAIN_IMAGES, BATCH):
        rows = slice(start, start + BATCH)
        x = torch.from_numpy(enlarged(dataset.train_images[rows], TRAINED_AT)).float() / 255
        loss = functional.cross_entropy(net(x.contiguous(memory_format=torch.channels_last)), labels[rows])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
    return net.to(memory_format=torch.contiguous_format).eval()


def prepare(size: int, num_inputs: int) -> tuple[Path, Path]:
    """Net and calibration images of a size; made once."""
    OUT.mkdir(parents=True, exist_ok=True)
    net, images = OUT / f"resnet18-{size}.pt2", OUT / f"images-{size}-{num_inputs}.npy"
    if net.is_file() and images.is_file():
        return net, images
    dataset, state = data.load(), OUT / "resnet18.pt"
    model = ResNet18(data.NUM_CLASSES).eval()
    if not state.is_file():
        torch.save(trained(dataset).state_dict(), state)
    model.load_state_dict(torch.load(state, weights_only=True))
    found = enlarged(dataset.train_images[-num_inputs:], size)
    np.save(images, found)
    write_net(net, model, found[:2])
    return net, images


def run(size: int, num_inputs: int, threads: int, effort: float) -> dict[str, Any]:
    """Calibrate and say what it took."""
    net, images = prepare(size, num_inputs)
    out = OUT / f"resnet18-{size}.qpart"
    command = [sys.executable, "-m", "qpart.cli", "calibrate", str(net), "--inputs", str(images), "--out", str(out)]
    command += ["--threads", str(threads), "--effort", str(effort), "--json"]
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, stdout=subprocess.PIPE, timeout=WITHIN_S, check=True)
    seconds, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    found = json.loads(done.stdout)
    return {
        "size": size,
        "threads": threads,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "most_memory_bytes": after.ru_maxrss * 1024,
        **{key: found[key] for key in ("nodes", "inputs", "patterns", "extent", "levels", "map", "file_bytes")},
    }


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--size", type=int, default=TRAINED_AT)
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--effort", type=float, default=1.0)
    parser.add_argument("--dry", action="store_true", help="print only")
    args = parser.parse_args()
    stamped = record.stamp()
    found = run(args.size, args.inputs, args.threads, args.effort)
    print(json.dumps(found, indent=1))
    if args.dry:
        return
    path = record.RESULTS / "calibration.json"
    known = json.loads(path.read_text())["nets"] if path.is_file() else {}
    figures = {
        f"qpart.calibration.resnet18_{args.size}_s": record.figure(
            found["seconds"], "seconds of `qpart calibrate`", "", COMMAND, stamped
        )
    }
    record.write("calibration", {"nets": {**known, f"resnet18-{args.size}": found}}, figures, stamped)


if __name__ == "__main__":
    main()
