"""Model directories and what comes with models: settings beside weights, tokenizers, and templates of chats."""

from __future__ import annotations

import contextlib
import json
import struct
import tempfile
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from edgekernels.decoder import DecoderError, load_decoder
from edgekernels.safetensors import SafetensorsError

from edgebus.payloads import decode, encode
from sled.drafters.identity import identity_of, read_map
from sled.drafters.own_ids import hash_of, map_of
from sled.errors import UnknownModel, VocabularyMismatch
from sled.messages import Described, Vocabulary
from sled.targets.faithful import insist_faithful
from sled.vocabulary import vocabulary_hash
from tests.fuzz.source import join_frames, split_frames

if find_spec("jinja2"):
    from jinja2.exceptions import TemplateError

    from sled.targets.templates import render
if find_spec("tokenizers"):
    from sled.targets.text import codec_from_gguf

TARGET = Described("t", "float32", 5, bytes(16), 64, 4, [0], b"id")
_CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 5,
    "hidden_size": 8,
    "intermediate_size": 6,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 16,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}


def directories(data: bytes) -> None:
    """A directory of settings and weights: refused by name, or forwards of the right shape, whatever its numbers."""
    config, weights, *_ = [*split_frames(data), b"", b""]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (path / "config.json").write_bytes(config)
        (path / "model.safetensors").write_bytes(weights)
        for bits in (None, 4):
            try:
                decoder = load_decoder(path, bits=bits)
            except (DecoderError, SafetensorsError):
                return
            with contextlib.suppress(UnknownModel):
                insist_faithful(path, decoder)
                assert json.loads(config)["max_position_embeddings"] == decoder.config.max_positions
            with contextlib.suppress(MemoryError):
                cache = decoder.new_cache(min(8, decoder.config.max_positions))
                tokens = [position % decoder.config.vocab_size for position in range(min(3, cache.positions))]
                assert decoder.forward(tokens, cache).shape == (1, decoder.config.vocab_size)


def tokenizers(data: bytes) -> None:
    """A tokenizer as a directory and as a file has it, and its map of ids: refused by name, or a vocabulary."""
    config, state, weights, metadata, *_ = [*split_frames(data), b"", b"", b"", b""]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        for name, content in (("config.json", config), ("tokenizer.json", state), ("model.safetensors", weights)):
            (path / name).write_bytes(content)
        with contextlib.suppress(UnknownModel, ValueError):
            identity = identity_of(path)
            assert len(identity.vocab_hash) == 16
            if identity.vocabulary is not None:
                _check(identity.vocabulary, identity.vocab_hash)
                assert -1 <= identity.bos_id < len(identity.vocabulary.pieces)
        with contextlib.suppress(VocabularyMismatch, ValueError):
            ids = read_map(path, 3, TARGET)
            assert ids is None or (len(set(ids.tolist())) == 3 and 0 <= ids.min() <= ids.max() < TARGET.vocab_size)
    try:
        found = json.loads(metadata)
    except (ValueError, RecursionError):
        return
    if isinstance(found, dict):
        _metadata(found)


def _metadata(found: Mapping[str, Any]) -> None:
    """What a GGUF file says of its tokenizer: any values under any keys."""
    with contextlib.suppress(UnknownModel, ValueError):
        assert len(hash_of(found)) == 16
    with contextlib.suppress(ValueError):
        ids = map_of(found)
        assert ids is None or (ids >= 0).all()
    if not find_spec("tokenizers"):
        return
    try:
        codec = codec_from_gguf(dict(found))
    except UnknownModel:
        return
    assert all(isinstance(stop, int) for stop in codec.stop_ids)
    tokens = codec.encode("aab grüße", chat=False)
    assert all(0 <= token < len(found["tokenizer.ggml.tokens"]) for token in tokens)
    vocabulary = codec.vocabulary()
    _check(vocabulary, vocabulary_hash(vocabulary))


def _check(vocabulary: Vocabulary, expected: bytes) -> None:
    assert vocabulary_hash(vocabulary) == expected
    assert decode(Vocabulary, encode(vocabulary)) == vocabulary
    assert all(0 <= special < len(vocabulary.pieces) for special in vocabulary.special_ids)


def templates(data: bytes) -> None:
    """A chat template of anybody: refused by name, or a text, the same each time; the conversation stays as it was."""
    template = data.decode("utf-8", "replace")
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    try:
        text = render(template, messages, {"bos_token": "<s>"})
    except TemplateError:
        text = None
    assert messages == [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    if text is not None and "strftime_now" not in template and "random" not in template and " at 0x" not in text:
        assert render(template, messages, {"bos_token": "<s>"}) == text


def _weights(config: Mapping[str, Any], **changed: tuple[int, ...]) -> bytes:
    """Float32 weights of every name that a config asks for."""
    hidden, ffn, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    half = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    layer = {
        "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (half, hidden), "self_attn.v_proj": (half, hidden),
        "self_attn.o_proj": (hidden, hidden), "mlp.gate_proj": (ffn, hidden), "mlp.up_proj": (ffn, hidden),
        "mlp.down_proj": (hidden, ffn), "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,),
    }  # fmt: skip
    shapes = {f"model.layers.0.{name}.weight": shape for name, shape in layer.items()}
    shapes |= {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)} | changed
    return _safetensors({name: np.ones(shape, np.float32) / 8 for name, shape in shapes.items()})


def _safetensors(arrays: Mapping[str, np.ndarray[Any, Any]]) -> bytes:
    header, body = {}, b""
    kinds = {"float32": "F32", "int32": "I32"}
    for name, array in arrays.items():
        raw = array.tobytes()
        header[name] = {
            "dtype": kinds[str(array.dtype)],
            "shape": list(array.shape),
            "data_offsets": [len(body), len(body) + len(raw)],
        }
        body += raw
    head = json.dumps(header).encode()
    return struct.pack("<Q", len(head)) + head + body


def directory_seeds() -> Iterator[bytes]:
    """A small model, with scaled rotary frequencies, a window, a head of its own, and settings that contradict it."""
    scaled = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    others: list[dict[str, Any]] = [
        {},
        {"rope_scaling": scaled | {"original_max_position_embeddings": 8}, "rope_theta": 5e5},
        {"rope_parameters": {"rope_type": "linear", "factor": 2}, "sliding_window": 4, "model_type": "mistral"},
        {"head_dim": 2, "partial_rotary_factor": 0.5, "num_key_value_heads": 2},
        {"attention_bias": True, "quantization_config": None, "auto_map": {}},
    ]
    for other in others:
        yield join_frames([json.dumps(_CONFIG | other).encode(), _weights(_CONFIG)])
    head = _weights(_CONFIG, **{"lm_head.weight": (5, 8)})
    yield join_frames([json.dumps(_CONFIG | {"tie_word_embeddings": False}).encode(), head])


def tokenizer_seeds() -> Iterator[bytes]:
    """A tokenizer of either alphabet as files have it, and a map of ids."""
    tokens = ["<s>", "a", "b", "aa", "\u0120"]
    byte_level = {"type": "ByteLevel"}
    state = {
        "model": {"vocab": {token: number for number, token in enumerate(tokens)}, "merges": ["a a"]},
        "decoder": byte_level,
        "added_tokens": [{"id": 0, "content": "<s>", "special": True}],
        "post_processor": {"single": ["<s>"]},
    }
    unigram = {"model": {"vocab": [["<0x0A>", 0.0], ["\u2581b", -1.0]]}, "decoder": None, "added_tokens": None}
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 1, 1, 1, 4],
        "tokenizer.ggml.merges": ["a a"],
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "sled.draft_to_target": [0, 2, 1],
        "tokenizer.chat_template": "{{ messages }}",
    }
    config = json.dumps({"bos_token_id": 0, "eos_token_id": [0, 1]}).encode()
    ids = _safetensors({"draft_to_target": np.array([4, 0, 2], np.int32)})
    for found in (state, unigram):
        yield join_frames([config, json.dumps(found).encode(), ids, json.dumps(metadata).encode()])
    stated = {"sled.target_vocab_hash": "ab" * 16, "tokenizer.ggml.model": "llama"}
    yield join_frames([json.dumps({"target_vocab_hash": "ab" * 16}).encode(), b"", b"", json.dumps(stated).encode()])


def template_seeds() -> Iterator[bytes]:
    """Templates as models have them, and what reaches for Python, refuses, divides by nothing or has no end."""
    yield (
        b"{{ bos_token }}{% for m in messages %}{% if m['role'] not in ['user', 'assistant'] %}"
        b"{{ raise_exception('no') }}{% endif %}<|{{ m.role }}|>{{ m['content'] | trim }}\n{% endfor %}"
        b"{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    yield b"{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ loop.index0 }}{% endfor %}"
    yield b"{% macro f(x) %}{{ x | tojson }}{% endmacro %}{{ f(messages[0]) }}"
    yield b"{% generation %}{{ tools is none }}{% endgeneration %}"
    yield b"{{ messages[0].content.__class__.__mro__ }}{{ dict(a=1) }}{{ 'a' ~ 1 // 3 ** 2 }}"
    yield b"{{ 1 // (messages | length - 2) }}"
    yield b"{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"
    yield b"{{ messages.append(1) }}"
    yield b"{{ messages[0].update({'role': 'x'}) }}"
    yield b"{{ messages + 1 }}{{ messages[9].role }}{{ messages.append(1) }}"
    yield b"{{ '%d' % 'x' }}{{ 'x' * 3 }}{{ [3, 'a'] | sort }}{{ 2 ** 8 }}"


TARGETS = {"directories": directories, "tokenizers": tokenizers}
if find_spec("jinja2"):
    TARGETS["templates"] = templates
SEEDS = {"directories": directory_seeds, "tokenizers": tokenizer_seeds, "templates": template_seeds}
