"""Many seeds, and proof that a failing one replays: run again, it must deliver the same messages at the same times."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import os
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from operator import index
from typing import Any, Protocol

import msgspec

from edgebus.messages import decode_header

Delivery = tuple[float, str, str, str]
SEED_VARIABLE = "EDGEBUS_SEED"


class Traced(Protocol):
    """What keeps a trace."""

    trace: list[Delivery]


_recordings: ContextVar[tuple[list[Traced], ...]] = ContextVar("edgebus recordings", default=())


@contextlib.contextmanager
def recording() -> Iterator[list[Traced]]:
    """Collect every network made inside."""
    networks: list[Traced] = []
    token = _recordings.set((*_recordings.get(), networks))
    try:
        yield networks
    finally:
        _recordings.reset(token)


def remember(network: Traced) -> None:
    """A network was made."""
    for networks in _recordings.get():
        networks.append(network)


def digest(networks: Iterable[Traced]) -> str:
    """16 hex digits of all that was delivered."""
    traces = [network.trace for network in networks]
    return hashlib.blake2b(repr(traces).encode(), digest_size=8).hexdigest()


def describe(header: bytes) -> str:
    """One line about a header that was delivered, readable or not."""
    try:
        decoded = decode_header(header)
    except (msgspec.MsgspecError, RecursionError, ValueError, OverflowError):
        return f"malformed, {len(header)} B"
    words = [str(getattr(decoded, name)) for name in ("id", "service", "code") if hasattr(decoded, name)]
    return " ".join([type(decoded).__name__, *words])


def check_seeds(function: Callable[[int], object], seeds: Iterable[int]) -> None:
    """Call a function with every seed; the first that fails is run again, and its exception says what came of it.

    Args:
        function: makes its networks, and everything else that is random, from the seed alone.
        seeds: which; the environment variable EDGEBUS_SEED names the only one instead.

    Raises:
        Exception: what the function raised, with a note: the seed, and whether it replays exactly.
    """
    for seed in _chosen(seeds):
        failure, networks = _attempt(function, seed)
        if failure is not None:
            failure.add_note(_proof(function, seed, failure, networks))
            raise failure


def for_seeds(seeds: int | Iterable[int]) -> Callable[[Callable[..., object]], Callable[..., None]]:
    """Make a test that takes a `seed` one that runs with all of them, see check_seeds.

    Args:
        seeds: how many, from 0, or which.

    Raises:
        ValueError: that is none: the test would pass without being run.
        TypeError: they are no whole numbers.
    """
    chosen = tuple(range(seeds) if isinstance(seeds, int) else map(index, seeds))
    if not chosen:
        raise ValueError(f"for_seeds({seeds!r}) names no seed, and the test would not be run: say how many, or which")

    def decorate(function: Callable[..., object]) -> Callable[..., None]:
        signature = inspect.signature(function)
        if "seed" not in signature.parameters:
            raise TypeError(f"{function.__name__}{signature} takes no seed: give it a parameter of that name")

        @functools.wraps(function)
        def test(*args: Any, **named: Any) -> None:
            check_seeds(lambda seed: function(*args, seed=seed, **named), chosen)

        # pytest asks for the parameters that are left, as fixtures.
        left = [item for name, item in signature.parameters.items() if name != "seed"]
        test.__signature__ = signature.replace(parameters=left)  # type: ignore[attr-defined]
        return test

    return decorate


def _chosen(seeds: Iterable[int]) -> Iterable[int]:
    text = os.environ.get(SEED_VARIABLE)
    if not text:
        return seeds
    try:
        return [int(text)]
    except ValueError:
        raise ValueError(f"{SEED_VARIABLE} is {text!r}: set it to one whole number, or unset it") from None


def _attempt(function: Callable[[int], object], seed: int) -> tuple[BaseException | None, list[Traced]]:
    with recording() as networks:
        try:
            function(seed)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # that of pytest.fail() is no Exception
            return error, networks
    return None, networks


def _proof(function: Callable[[int], object], seed: int, failure: BaseException, networks: list[Traced]) -> str:
    head = f"seed {seed} fails; {SEED_VARIABLE}={seed} runs it alone"
    again, networks_again = _attempt(function, seed)
    num = sum(len(network.trace) for network in networks)
    before, after = digest(networks), digest(networks_again)
    if before == after and type(again) is type(failure):
        return f"{head}; run again it replayed exactly: {num} deliveries, digest {after}"
    ended = "it passed" if again is None else f"it raised {type(again).__name__}"
    return (
        f"{head}; run again it did NOT replay ({ended}; {_first_difference(networks, networks_again)}): "
        "something besides the seed is random, such as the real clock, a thread, the order of a set, or state kept "
        "from the run before"
    )


def _first_difference(networks: list[Traced], others: list[Traced]) -> str:
    if len(networks) != len(others):
        return f"{len(networks)} networks, then {len(others)}"
    for network, other in zip(networks, others, strict=True):
        for number, (one, two) in enumerate(zip(network.trace, other.trace, strict=False)):
            if one != two:
                return f"delivery {number} was {one}, then {two}"
        if len(network.trace) != len(other.trace):
            return f"{len(network.trace)} deliveries, then {len(other.trace)}"
    return "the same deliveries"
