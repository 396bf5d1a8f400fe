"""Shape of a Llama-family decoder and its rotary frequencies, from GGUF metadata or a config.json."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekernels._mapped import shown

Floats = npt.NDArray[np.float32]
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
_MAX_SIZE = 1 << 24  # of any dimension: products of two stay far below 2**63
_MAX_LAYERS = 1 << 12
_NEUTRAL: dict[str, tuple[float, ...]] = {  # keys of GGUF which change the model, unless they are one of these
    "attention.causal": (True,),
    "logit_scale": (0, 1),
    "final_logit_softcapping": (0,),
    "attn_logit_softcapping": (0,),
    "expert_count": (0,),
    "embedding_scale": (0, 1),
    "residual_scale": (0, 1),
}


class DecoderError(ValueError):
    """The files hold no model which the native decoder can run; the message says why."""


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """Shape and constants of a decoder; `frequencies` are the rotary ones, float32 (rotary_dim / 2,), scaled."""

    vocab_size: int
    hidden_size: int
    ffn_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_epsilon: float
    max_positions: int
    frequencies: Floats = field(repr=False)

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "ffn_size", "num_heads", "num_kv_heads", "head_dim", "max_positions"):
            _within(name, getattr(self, name), _MAX_SIZE)
        _within("num_layers", self.num_layers, _MAX_LAYERS)
        if self.num_heads % self.num_kv_heads:
            raise DecoderError(f"{self.num_heads} heads are no multiple of {self.num_kv_heads} key/value heads")
        if self.frequencies.ndim != 1 or not 1 <= len(self.frequencies) <= self.head_dim // 2:
            raise DecoderError(
                f"rotary frequencies of shape {self.frequencies.shape} do not fit heads of {self.head_dim}"
            )
        if not np.isfinite(self.frequencies).all():
            raise DecoderError(f"rotary frequencies go up to {self.frequencies.max()}; finite ones are needed")
        if not 0 < self.norm_epsilon < 1:
            raise DecoderError(f"the norm's epsilon is {self.norm_epsilon}; a number in (0, 1) is needed")

    @property
    def group(self) -> int:
        """Query heads which share one head of keys and values."""
        return self.num_heads // self.num_kv_heads


def _within(name: str, value: object, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise DecoderError(f"{name} is {value!r}; an integer from 1 to {most} is needed")


def _number(name: str, value: object) -> float:
    try:
        number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:  # an integer of hundreds of digits
        number = math.inf
    if not math.isfinite(number) or number <= 0:
        raise DecoderError(f"{name} is {shown(value)}; a positive number is needed")
    return number


def frequencies(rotary_dim: int, theta: float, scaling: Mapping[str, Any] | None = None) -> Floats:
    """Rotary frequencies, one for each pair of dimensions.

    Args:
        rotary_dim: dimensions of a head which turn, even.
        theta: base of the geometric series.
        scaling: None, or a mapping as in `rope_scaling` of a config.json: kinds default, linear and llama3.

    Returns:
        float32 (rotary_dim / 2,), radians per position.

    Raises:
        DecoderError: another kind of scaling, or numbers out of range.

    Source: RoFormer (arXiv 2104.09864); position interpolation (arXiv 2306.15595); Llama 3.1 model card.

    >>> frequencies(4, 10000.0, {"rope_type": "linear", "factor": 4.0}).tolist()
    [0.25, 0.0024999999441206455]
    """
    _within("rotary_dim", rotary_dim, _MAX_SIZE)
    if rotary_dim % 2:
        raise DecoderError(f"rotary_dim is {rotary_dim}; an even number is needed")
    theta, exponents = _number("rope theta", theta), np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim
    with np.errstate(all="ignore"):
        turning = _scaled(1.0 / theta**exponents, scaling or {})
    if not np.isfinite(turning).all():
        raise DecoderError(f"rope theta {theta} and scaling {shown(scaling)} give frequencies which are not finite")
    return turning


def _scaled(plain: npt.NDArray[np.float64], scaling: Mapping[str, Any]) -> Floats:
    """Frequencies by the kind of scaling."""
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind in ("default", "none"):
        return plain.astype(np.float32)
    if kind == "linear":
        return np.asarray(plain / _number("rope factor", scaling.get("factor")), np.float32)
    if kind == "llama3":
        return _llama3(plain, scaling)
    raise DecoderError(f"rotary scaling {shown(kind)} is not supported; default, linear and llama3 are")


def _llama3(plain: npt.NDArray[np.float64], scaling: Mapping[str, Any]) -> Floats:
    """Low frequencies are divided by the factor, high ones stay, those between are blended."""
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    factor, low, high, context = (_number(f"rope {name}", scaling.get(name)) for name in names)
    if high <= low:
        raise DecoderError(f"rope high_freq_factor is {high}, low_freq_factor {low}; the first must be larger")
    blend = np.clip((context * plain / (2 * np.pi) - low) / (high - low), 0, 1)
    return np.asarray((1 - blend) * plain / factor + blend * plain, np.float32)


def from_json(config: Mapping[str, Any]) -> DecoderConfig:
    """The shape which a config.json of transformers states.

    Raises:
        DecoderError: another family, a missing key, or something the decoder does not compute.
    """
    family = config.get("model_type")
    if family not in FAMILIES:
        raise DecoderError(f"model_type is {family!r}; the native decoder runs {', '.join(FAMILIES)}")
    if config.get("quantization_config") is not None:
        raise DecoderError("quantised safetensors are not supported; give the float model or a GGUF file")
    if config.get("hidden_act", "silu") != "silu":
        raise DecoderError(f"hidden_act is {config['hidden_act']!r}; only silu is supported")
    try:
        heads, hidden, positions = (
            config[key] for key in ("num_attention_heads", "hidden_size", "max_position_embeddings")
        )
        _within("num_attention_heads", heads, _MAX_SIZE)
        _within("hidden_size", hidden, _MAX_SIZE)
        head_dim = config.get("head_dim") or hidden // heads
        _within("head_dim", head_dim, _MAX_SIZE)
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        if not isinstance(rope, Mapping):
            raise DecoderError(f"rope_parameters or rope_scaling is {shown(rope)}; an object is needed")
        turning = _number("partial_rotary_factor", config.get("partial_rotary_factor") or 1.0)
        if turning > 1:
            raise DecoderError(f"partial_rotary_factor is {turning}; a number in (0, 1] is needed")
        window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
        if isinstance(window, int) and isinstance(positions, int):
            positions = min(positions, window)  # up to there a window changes nothing
        return DecoderConfig(
            vocab_size=config["vocab_size"],
            hidden_size=hidden,
            ffn_size=config["intermediate_size"],
            num_layers=config["num_hidden_layers"],
            num_heads=heads,
            num_kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=head_dim,
            norm_epsilon=_number("rms_norm_eps", config["rms_norm_eps"]),
            max_positions=positions,
            frequencies=frequencies(
                int(head_dim * turning),
                rope.get("rope_theta", config.get("rope_theta", 10000.0)),
                rope,
            ),
        )
    except KeyError as error:
        raise DecoderError(f"config.json lacks {error}; copy the model again") from None


def from_gguf(metadata: Mapping[str, Any], vocab_size: int, divisors: Floats | None = None) -> DecoderConfig:
    """The shape which the metadata of a GGUF file state.

    Args:
        metadata: as the reader gives them.
        vocab_size: rows of the embedding.
        divisors: what the tensor rope_freqs.weight holds (how the converter writes llama3 scaling), or None.

    Raises:
        DecoderError: another family, a missing key, or something the decoder does not compute.
    """
    family = metadata.get("general.architecture")
    if family not in FAMILIES:
        raise DecoderError(f"the GGUF file holds a {family!r} model; the native decoder runs {', '.join(FAMILIES)}")

    def value(key: str, default: Any = None) -> Any:
        found = metadata.get(f"{family}.{key}", default)
        if found is None:
            raise DecoderError(f"the GGUF file lacks {family}.{key}; convert the model again")
        return found

    heads, hidden = value("attention.head_count"), value("embedding_length")
    _within("head_count", heads, _MAX_SIZE)
    _within("embedding_length", hidden, _MAX_SIZE)
    head_dim = value("attention.key_length", hidden // heads)
    if value("attention.value_length", head_dim) != head_dim:
        raise DecoderError(f"keys of {head_dim} and values of {value('attention.value_length')} differ in length")
    _within("key_length", head_dim, _MAX_SIZE)
    _insist_neutral(metadata, family, head_dim)
    factor = value("rope.scaling.factor", value("rope.scale_linear", 0.0)) or 1.0  # ggml's defaults
    scaling = {"rope_type": value("rope.scaling.type", "linear"), "factor": factor}
    rotary_dim = value("rope.dimension_count", head_dim)
    _within("rope.dimension_count", rotary_dim, head_dim)
    turning = frequencies(rotary_dim, value("rope.freq_base", 10000.0), scaling)
    if divisors is not None:
        if divisors.shape != turning.shape or not ((divisors > 0) & np.isfinite(divisors)).all():
            raise DecoderError(
                f"rope_freqs has shape {divisors.shape} and numbers up to {divisors.max(initial=0)}; "
                f"{turning.shape} positive, finite numbers are needed"
            )
        with np.errstate(over="ignore"):  # DecoderConfig refuses what is not finite
            turning = (turning / divisors).astype(np.float32)
    positions = value("context_length")
    window = value("attention.sliding_window", 0)
    if isinstance(window, int) and isinstance(positions, int) and window > 0:
        positions = min(positions, window)
    return DecoderConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        ffn_size=value("feed_forward_length"),
        num_layers=value("block_count"),
        num_heads=heads,
        num_kv_heads=value("attention.head_count_kv", heads),
        head_dim=head_dim,
        norm_epsilon=_number("layer_norm_rms_epsilon", value("attention.layer_norm_rms_epsilon")),
        max_positions=positions,
        frequencies=turning,
    )


def _insist_neutral(metadata: Mapping[str, Any], family: str, head_dim: int) -> None:
    """Refuse what would change the model and is not computed."""
    for key, neutral in (_NEUTRAL | {"attention.scale": (0, head_dim**-0.5)}).items():
        found = metadata.get(f"{family}.{key}", neutral[0])
        if not isinstance(found, int | float) or not any(math.isclose(found, one, rel_tol=1e-6) for one in neutral):
            raise DecoderError(
                f"{family}.{key} is {shown(found)}; the native decoder computes only "
                f"{' and '.join(f'{one:g}' for one in neutral)}"
            )
