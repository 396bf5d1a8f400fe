"""Trains the demonstration's networks: `python -m qpart.demo.train --out DIR`."""

from __future__ import annotations

import argparse
import io
import os
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin starve each other; torch reads it once

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from edgebus.files import write_whole
from qpart.demo import data
from qpart.demo.nets import FullyConnected, SmallResNet
from qpart.errors import QpartError
from qpart.graph import export

CALIBRATION_IMAGES, CALIBRATION_DIGITS = 5000, 300
SMALL_SET = 10_000


class Recipe(NamedTuple):
    """How a net is made and trained; few images need more epochs and smaller batches.

    `bfloat16` pays for plain convolutions and not for depthwise ones or small matrices.
    """

    make: Callable[[tuple[int, ...], int], torch.nn.Module]
    epochs: int
    quick_epochs: int
    learning_rate: float
    bfloat16: bool = True


RECIPES = {
    "fc": Recipe(FullyConnected, 14, 2, 4e-3),
    "resnet": Recipe(SmallResNet, 6, 1, 1e-2),
}


class Trained(msgspec.Struct, frozen=True):
    """What `nets.json` says of a net; accuracy on all test images, in float32."""

    file: str
    accuracy: float
    parameters: int
    epochs: int
    seed: int
    seconds: float


class Summary(msgspec.Struct, frozen=True):
    """The file `nets.json`."""

    dataset: str
    note: str
    num_train: int
    num_calibration: int
    num_test: int
    nets: dict[str, Trained]


def train_all(
    out: Path,
    names: Collection[str] | None = None,
    *,
    recipes: Mapping[str, Recipe] = RECIPES,
    epochs: int | None = None,
    quick: bool = False,
    seed: int = 0,
    threads: int = 1,
    force: bool = False,
    say: Callable[[str], None] = print,
) -> Summary:
    """Train nets and write them with their images; nets that are there already are left alone.

    Args:
        names: of nets; None for all of `recipes`.
        recipes: nets by name, and how they are trained.
        out: directory for <net>.pt2, calibration_images.npy, test_images.npy, test_labels.npy and nets.json.
        epochs: None for each net's own number.
        quick: a few seconds instead of half a minute, for some percent of accuracy.
        threads: of torch. Two are a quarter faster if two cores have nothing else to do, and thirty times slower if
            they have: the convolutions' threads spin while they wait for each other.
        force: train what is there already once more.

    Raises:
        ArtefactError: there are no images to train on.
        OSError: the directory cannot be written.
    """
    dataset = data.load()
    say(f"{dataset.name}: {dataset.note}")
    images, labels, calibration = _divided(dataset)
    summary = Summary(dataset.name, dataset.note, len(images), len(calibration), len(dataset.test_images), {})
    done = {} if force else _done(out, summary)
    _write_images(out, dataset, calibration)
    for name in recipes if names is None else names:
        wanted = epochs or _epochs(recipes[name], len(images), quick)
        found = done.get(name)
        if found is not None and (found.epochs, found.seed) == (wanted, seed):
            say(f"{name}: already in {out}, {found.accuracy:.2%} of the test images; --force trains it again")
            continue
        with _threads(threads):
            net, seconds = _trained(name, recipes[name], images, labels, wanted, seed, say)
        accuracy = evaluate(net, dataset.test_images, dataset.test_labels)
        say(f"{name}: {accuracy:.2%} of the test images after {seconds:.1f} s")
        write_net(out / f"{name}.pt2", net, dataset.test_images[:2])
        parameters = sum(parameter.numel() for parameter in net.parameters())
        done[name] = Trained(f"{name}.pt2", round(accuracy, 6), parameters, wanted, seed, round(seconds, 2))
        _write_summary(out, msgspec.structs.replace(summary, nets=done))
    return msgspec.structs.replace(summary, nets=done)


def evaluate(net: torch.nn.Module, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> float:
    """Share of images (n, 1, height, width) that a net answers rightly."""
    net.eval()
    right = 0
    with torch.inference_mode():
        for start in range(0, len(images), 1000):
            part = slice(start, start + 1000)
            found = net(torch.from_numpy(images[part]).float() / 255).argmax(1)
            right += int((found == torch.from_numpy(labels[part])).sum())
    return right / len(images)


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _divided(dataset: data.Dataset) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.uint8]]:
    """Images and labels to train on, and the last training images, which calibrate."""
    held = CALIBRATION_IMAGES if len(dataset.train_images) > SMALL_SET else CALIBRATION_DIGITS
    return dataset.train_images[:-held], dataset.train_labels[:-held], dataset.train_images[-held:]


def _epochs(recipe: Recipe, num_images: int, quick: bool) -> int:
    return (recipe.quick_epochs if quick else recipe.epochs) * (1 if num_images > SMALL_SET else 5)


def _trained(
    name: str,
    recipe: Recipe,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    epochs: int,
    seed: int,
    say: Callable[[str], None],
) -> tuple[torch.nn.Module, float]:
    """AdamW, one cycle of the learning rate. Returns the net and the seconds that it took."""
    began = time.perf_counter()
    torch.manual_seed(seed)
    batch = 512 if len(images) > SMALL_SET else 32
    net = recipe.make(images.shape[1:], data.NUM_CLASSES).to(memory_format=torch.channels_last)
    pixels, answers = torch.from_numpy(images), torch.from_numpy(labels)
    optimiser = torch.optim.AdamW(net.parameters(), recipe.learning_rate, weight_decay=0.01)
    steps = len(images) // batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.learning_rate, epochs * steps, pct_start=0.25)
    for epoch in range(1, epochs + 1):
        total = 0.0
        for rows in torch.randperm(len(images))[: steps * batch].view(steps, batch):
            x = (pixels[rows].float() / 255).contiguous(memory_format=torch.channels_last)
            with _autocast(recipe.bfloat16):
                loss = functional.cross_entropy(net(x).float(), answers[rows])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            total += float(loss.detach())
        say(f"{name}: epoch {epoch}/{epochs}, loss {total / steps:.3f}, {time.perf_counter() - began:.1f} s")
    return net.to(memory_format=torch.contiguous_format), time.perf_counter() - began


def _autocast(wanted: bool) -> AbstractContextManager[Any]:
    """bfloat16 where the processor computes in it; elsewhere it is slower than float32."""
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    return torch.autocast("cpu", torch.bfloat16) if wanted and supported else nullcontext()


def _done(out: Path, wanted: Summary) -> dict[str, Trained]:
    """Nets that are there and were trained on the same images."""
    try:
        found = msgspec.json.decode((out / "nets.json").read_bytes(), type=Summary)
    except (OSError, msgspec.DecodeError):
        return {}
    if msgspec.structs.replace(found, nets={}) != wanted:
        return {}
    return {name: net for name, net in found.nets.items() if (out / f"{name}.pt2").is_file()}


def _write_images(out: Path, dataset: data.Dataset, calibration: NDArray[np.uint8]) -> None:
    arrays: dict[str, NDArray[Any]] = {
        "calibration_images": calibration,
        "test_images": dataset.test_images,
        "test_labels": dataset.test_labels,
    }
    for name, array in arrays.items():
        content = io.BytesIO()
        np.save(content, array, allow_pickle=False)
        path = out / f"{name}.npy"
        if not path.is_file() or path.read_bytes() != content.getvalue():
            write_whole(path, content.getvalue())


def write_net(path: Path, net: torch.nn.Module, images: NDArray[np.uint8]) -> None:
    """Export a net for inputs like these pixels, two of them."""
    content = io.BytesIO()
    torch.export.save(export(net, torch.from_numpy(images).float() / 255), content)
    write_whole(path, content.getvalue())


def _write_summary(out: Path, summary: Summary) -> None:
    write_whole(out / "nets.json", msgspec.json.format(msgspec.json.encode(summary), indent=2) + b"\n")


def main(
    arguments: Sequence[str] | None = None,
    *,
    recipes: Mapping[str, Recipe] = RECIPES,
    prog: str = "python -m qpart.demo.train",
) -> int:
    """Entry point; status 0, 1 for what went wrong, 2 for usage."""
    parser = argparse.ArgumentParser(prog=prog, description="Trains networks on images that the machine has.")
    parser.add_argument("--out", type=Path, required=True, help="directory for the nets and their images")
    parser.add_argument("--net", choices=[*recipes, "all"], default="all")
    parser.add_argument("--epochs", type=_positive, help="instead of each net's own number")
    parser.add_argument("--quick", action="store_true", help="a few seconds, for some percent of accuracy")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=_positive, default=1, help="more are faster on idle cores only")
    parser.add_argument("--force", action="store_true", help="train again what is there already")
    args = parser.parse_args(arguments)
    names = list(recipes) if args.net == "all" else [args.net]
    try:
        train_all(
            args.out,
            names,
            recipes=recipes,
            epochs=args.epochs,
            quick=args.quick,
            seed=args.seed,
            threads=args.threads,
            force=args.force,
        )
    except (QpartError, OSError) as error:
        print(f"train: {error}", file=sys.stderr)
        return 1
    return 0


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive")
    return number


if __name__ == "__main__":
    sys.exit(main())
