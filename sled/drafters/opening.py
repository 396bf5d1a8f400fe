"""From what a user writes to a drafter that speaks the target's ids."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sled.drafters.plugins import Request, find_plugin
from sled.drafters.protocol import Drafter, NoDrafter
from sled.drafters.spec import Spec, divided, insist_known, number, numbers, parse
from sled.errors import ParameterError, UnknownModel
from sled.messages import Described, Vocabulary

PACKAGED = {"smollm2-12m": "smollm2-draft-12m/smollm2-draft-12m.q8_0.gguf"}
BUILT_IN = ("none", "ngram", *PACKAGED)
REDUCTIONS = ("skip", "bits", "group")
_GROUPS = (16, 32, 64, 128, 256)
log = logging.getLogger("sled.drafters")


def open_drafter(
    spec: str,
    target: Described,
    *,
    vocabulary: Vocabulary | None = None,
    threads: int = 0,
    progress: Callable[[float], None] | None = None,
) -> Drafter:
    """The drafter a user names: none, ngram, smollm2-12m, a .gguf file, a model directory, a plug-in, or a chain.

    Models of the Llama family run on the native decoder, directories of others in torch, files of others on llama.cpp;
    `torch:` and `llama:` before the name or path decide that. docs/guide/drafters.md has all that can be said.

    Args:
        spec: as users write it, e.g. "ngram+smollm2-12m" or "smollm2-135m@bits=4".
        target: what the server said about its model.
        vocabulary: of the target; plug-ins and models of another vocabulary need it.
        threads: threads for a model; 0 lets it decide (the native decoder takes 1).
        progress: called with the share loaded, 0 .. 1.

    Raises:
        ParameterError: an option that means nothing, or is out of range.
        UnknownModel: no such drafter, or what it needs is not installed.
        VocabularyMismatch: its token ids are not the target's, and nothing is known to re-encode them by.
    """
    first, rest = divided(spec)
    request = Request(target, vocabulary, threads, progress)
    if not rest:
        return _open(parse(spec), request)
    from sled.drafters.chain import Chain

    second = open_drafter(rest, target, vocabulary=vocabulary, threads=threads, progress=progress)
    return Chain(_open(parse(first), request), second)


def model_files(spec: str) -> list[tuple[str, int, int]]:
    """Of the models in a drafter: name, size in bytes and time of change in ns; plug-ins and look-up have none."""
    found, rest = [], spec
    while rest:
        first, rest = divided(rest)
        with suppress(UnknownModel, ParameterError, OSError):
            path = _files_of(parse(first))
            # A directory's own time does not tell that a file in it was written anew.
            for file in sorted(each for each in path.iterdir() if each.is_file()) if path.is_dir() else [path]:
                status = file.stat()
                found.append((file.name, status.st_size, status.st_mtime_ns))
    return found


def _open(spec: Spec, request: Request) -> Drafter:
    if not spec.backend and spec.model in ("none", "ngram"):
        insist_known(spec, ())
        if spec.model == "none":
            return NoDrafter()
        from sled.drafters.ngram import NgramDrafter

        return NgramDrafter()
    plugin = None if spec.backend or spec.model in PACKAGED else find_plugin(spec.model)
    return plugin.open(spec, request) if plugin else _open_model(spec, _files_of(spec), request)


def _files_of(spec: Spec) -> Path:
    """The file or directory of a model.

    Raises:
        UnknownModel: there is none.
    """
    if spec.model in PACKAGED:
        return Path(__file__).parents[1] / "models" / PACKAGED[spec.model]
    with suppress(OSError, RuntimeError):  # no name that a file can have, no such home
        path = Path(spec.model).expanduser()
        if (path.is_file() and path.suffix == ".gguf") or (path / "config.json").is_file():
            return path
    from sled.targets.catalog import PACKAGED as TARGETS
    from sled.targets.catalog import find_model

    if spec.model in TARGETS:
        return find_model(spec.model).path
    raise UnknownModel(
        f"no drafter {spec.text!r}: give {', '.join(BUILT_IN)}, a .gguf file, or a directory with config.json; "
        "`sled drafters` lists them"
    )


@dataclass(frozen=True, slots=True)
class _Reduction:
    """How a copy of a model is made cheaper."""

    skip: tuple[int, ...]
    bits: int | None
    group: int

    @classmethod
    def of(cls, spec: Spec) -> _Reduction:
        insist_known(spec, () if spec.backend == "llama" else REDUCTIONS)
        group = number(spec, "group", _GROUPS[0], _GROUPS[-1]) or 64
        if group not in _GROUPS:
            raise ParameterError(f"group is {group} in {spec.text!r}; give one of {', '.join(map(str, _GROUPS))}")
        bits = number(spec, "bits", 1, 8)
        if bits is None and "group" in spec.options:
            raise ParameterError(f"group is given in {spec.text!r} without bits; give both, or neither")
        return cls(numbers(spec, "skip"), bits, group)


def _open_model(spec: Spec, path: Path, request: Request) -> Drafter:
    from sled.drafters.identity import check_vocabulary, identity_of, read_map
    from sled.drafters.model import LanguageModel, ModelDrafter

    reduction, target = _Reduction.of(spec), request.target
    if spec.backend == "llama" and not path.is_file():
        raise UnknownModel(f"llama.cpp runs .gguf files, {path} is a directory; leave llama: out")
    try:
        identity = identity_of(path)
        same = identity.vocab_hash == target.vocab_hash
        if request.vocabulary is None or identity.vocabulary is None:
            check_vocabulary(spec.text, identity.vocab_hash, target)
        model: LanguageModel = _load(spec, path, reduction, request)
        target_ids = read_map(path, model.vocab_size, target) if same else None
    except (ValueError, OSError) as error:
        if isinstance(error, ParameterError):
            raise
        raise UnknownModel(f"cannot read the model: {error}; give a sound file") from None
    if same or request.vocabulary is None:
        return ModelDrafter(model, name=spec.text, target_ids=target_ids, target_vocab_size=target.vocab_size)
    from sled.drafters.reencoding import ReencodingDrafter

    log.info("drafts of %s are re-encoded: its vocabulary is another than that of %s", spec.text, target.name)
    return ReencodingDrafter(model, identity, target, request.vocabulary, name=spec.text)


def _load(spec: Spec, path: Path, reduction: _Reduction, request: Request) -> Any:
    """The model on its backend; without one said, on the native decoder, or where that does not know the family."""
    if spec.backend == "torch":
        return _load_in_torch(spec, path, reduction, request, "")
    if spec.backend == "llama":
        return _load_in_llama(spec, path, request, "")
    from edgekernels.decoder import DecoderError

    from sled.drafters.native import load_native

    try:
        return load_native(
            path,
            positions=request.target.max_positions,
            threads=request.threads or 1,
            skip=reduction.skip,
            bits=reduction.bits,
            group=reduction.group,
            progress=request.progress,
        )
    except DecoderError as error:
        if spec.backend == "native" or (path.is_file() and (reduction.skip or reduction.bits)):
            raise
        if path.is_file():
            return _load_in_llama(spec, path, request, f" ({error})")
        return _load_in_torch(spec, path, reduction, request, f" ({error})")


def _load_in_torch(spec: Spec, path: Path, reduction: _Reduction, request: Request, why: str) -> Any:
    try:
        import torch

        from sled.drafters.causal_lm import load_in_torch
    except ModuleNotFoundError as error:
        raise UnknownModel(f"drafter {spec.text!r} needs {error.name}{why}: pip install 'edgebus[torch]'") from None
    if request.threads:
        torch.set_num_threads(request.threads)
    return load_in_torch(
        path, skip=reduction.skip, bits=reduction.bits, group=reduction.group, progress=request.progress
    )


def _load_in_llama(spec: Spec, path: Path, request: Request, why: str) -> Any:
    from sled.drafters.llama import LlamaModel

    try:
        return LlamaModel(path, request.target.max_positions, request.threads)
    except UnknownModel as error:
        raise UnknownModel(f"drafter {spec.text!r}{why}: {error}") from None
