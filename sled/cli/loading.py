"""The target of `sled serve` from its settings; torch is imported where it is needed, after the cheap checks."""

from __future__ import annotations

import logging
import signal
from typing import Any

from edgebus.cli.progress import load_bar
from sled.errors import UnknownModel
from sled.run.serving import Loaded
from sled.run.warming import Forecast, measure_rounds, measure_steps, warm_up
from sled.settings import ServeSettings
from sled.targets.catalog import ModelFiles, find_model

log = logging.getLogger("sled.server")


def load(settings: ServeSettings) -> Loaded:
    """The target, with what compiles constraints for it and what gives its devices their windows.

    Raises:
        UnknownModel: no such model, or a package is missing.
        ParameterError: a setting that the target does not take.
    """
    from sled.constraint import FormFactory
    from sled.goodput import GoodputPolicy
    from sled.server import FixedWindow

    target = _target(settings)
    warm_up(target)
    vocabulary, shape = target.vocabulary, target.shape
    forms = FormFactory(vocabulary.pieces, vocabulary.special_ids, shape.stop_ids, shape.vocab_size)
    close = target.close if settings.tensor_parallel > 1 else _nothing
    if settings.windows == "fixed":
        fixed = FixedWindow(settings.max_window)
        measure_rounds(target, fixed.measured)
        return Loaded(target, form_of=forms, policy=fixed, close=close)
    policy, known = GoodputPolicy(settings.max_window), Forecast()
    measure_rounds(target, policy.measured, known=known)
    measure_steps(target, policy.measured, most_rounds=settings.max_sessions, known=known)
    return Loaded(target, form_of=forms, policy=policy, cost=policy.cost, close=close)


def follow(settings: ServeSettings) -> None:
    """Compute our part of a target that torchrun's processes share, for as long as the first one serves.

    Whoever ends a server signals all of its processes, and the first one needs us until it has drained.
    """
    target = _target(settings)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    target.follow()


def _nothing() -> None:
    pass


def _target(settings: ServeSettings) -> Any:
    files = find_model(settings.model)
    sizes: dict[str, Any] = {
        "max_window": settings.max_window,
        "kv_bytes": settings.num_kv_bytes,
        "page_tokens": settings.page_tokens or None,
        "dtype": settings.dtype,
        "device": settings.device,
        "attention": settings.attention,
    }
    with load_bar(f"loading target {files.name}", quiet=settings.log_json) as progress:
        try:
            if settings.tensor_parallel > 1:
                return _divided(settings, files, progress=progress, **sizes)
            from sled.targets.engines import load_engine

            target = load_engine(
                files,
                engine=settings.engine,
                activations=settings.activations,
                num_threads=settings.threads,
                progress=progress,
                **sizes,
            )
        except ModuleNotFoundError as error:
            raise UnknownModel(f"serving needs {error.name}: pip install 'edgebus[server]'") from None
    about = {"engine": target.engine, "dtype": target.described.dtype, "target_threads": target.num_threads}
    log.info("loaded", extra={"target": files.name, **about})
    return target


def _divided(settings: ServeSettings, files: ModelFiles, **more: Any) -> Any:
    import torch

    from sled.targets.tensor_parallel import load_tensor_parallel

    if settings.threads:
        torch.set_num_threads(settings.threads)
    target = load_tensor_parallel(files, **more)
    threads = torch.get_num_threads()
    log.info("loaded", extra={"target": files.name, "dtype": settings.dtype, "target_threads": threads})
    return target
