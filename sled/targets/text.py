"""Text to token ids and back, on the side that holds the tokenizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from sled.errors import UnknownModel
from sled.messages import Vocabulary
from sled.pieces import vocabulary_of_tokenizer
from sled.targets.templates import render
from sled.types import Message


class TextCodec:
    """A tokenizer, its chat template and its stop tokens.

    Args:
        tokenizer: a `tokenizers.Tokenizer`.
        chat_template: Jinja source as models ship it, or None.
        special: names of special tokens as templates use them, e.g. {"bos_token": "<s>"}.
        stop_ids: ids that end an answer.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        chat_template: str | None,
        special: dict[str, str],
        stop_ids: Sequence[int],
    ) -> None:
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self.special = special
        self.stop_ids = sorted(set(stop_ids))

    def encode(self, text: str, *, chat: bool) -> list[int]:
        """Token ids of a prompt; with `chat`, of a conversation whose only message is the user's `text`.

        Raises:
            ValueError: chat is asked for and the model has no template, or the template refuses.
        """
        if not chat:
            ids: list[int] = self.tokenizer.encode(text).ids
            return ids
        return self.encode_chat([Message("user", text)])

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation, up to where the next answer begins.

        Raises:
            ValueError: the model has no template, or the template refuses.
        """
        if self.chat_template is None:
            raise ValueError("this model has no chat template; send the prompt as it is (--raw)")
        try:
            conversation = [{"role": each.role, "content": each.content} for each in messages]
            rendered = render(self.chat_template, conversation, self.special)
        except TemplateError as error:
            raise ValueError(f"the model's chat template failed: {error}") from error
        return list(self.tokenizer.encode(rendered, add_special_tokens=False).ids)

    def vocabulary(self) -> Vocabulary:
        """The bytes of every id, for devices that show text without a tokenizer."""
        return vocabulary_of_tokenizer(json.loads(self.tokenizer.to_str()))


def codec_from_gguf(metadata: dict[str, Any]) -> TextCodec:
    """The tokenizer inside a GGUF file.

    Raises:
        UnknownModel: a tokenizer kind other than byte-level BPE, or one that contradicts itself.
    """
    try:
        return _byte_level_bpe(metadata)
    except UnknownModel:
        raise
    except KeyError as error:
        raise UnknownModel(f"the GGUF file lacks {error}; convert the model again") from None
    except Exception as error:  # the tokenizer library raises no other kind
        raise UnknownModel(f"the GGUF file's tokenizer contradicts itself ({error}); convert the model again") from None


def _byte_level_bpe(metadata: dict[str, Any]) -> TextCodec:
    kind, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "gpt-2")
    splitters = {
        "smollm": pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        ),
        "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    }
    if kind != "gpt2" or pre not in splitters:
        raise UnknownModel(
            f"the GGUF file's tokenizer is {kind}/{pre}; supported are gpt2 with {', '.join(splitters)}: "
            "use the model's Hugging Face directory instead"
        )
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = splitters[pre]
    tokenizer.decoder = decoders.ByteLevel()
    control = [t for t, type_id in zip(tokens, types, strict=True) if type_id == 3]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in control])
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    special = {
        name: tokens[metadata[f"tokenizer.ggml.{key}_token_id"]]
        for name, key in names.items()
        if f"tokenizer.ggml.{key}_token_id" in metadata
    }
    stop = [metadata[key] for key in ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id") if key in metadata]
    template = metadata.get("tokenizer.chat_template")
    if not isinstance(template, str | None) or not all(isinstance(one, int) for one in stop):
        raise UnknownModel(f"the GGUF file's chat template or stop tokens {stop} are none; convert the model again")
    return TextCodec(tokenizer, template, special, stop)


def codec_from_directory(path: Path) -> TextCodec:
    """The tokenizer of a model directory in Hugging Face layout.

    Raises:
        UnknownModel: the directory has no tokenizer.json.
    """
    if not (path / "tokenizer.json").is_file():
        raise UnknownModel(f"{path} has no tokenizer.json; save the tokenizer in its fast format beside the model")
    from transformers import AutoTokenizer, GenerationConfig

    loaded = AutoTokenizer.from_pretrained(path, local_files_only=True)
    stop = [loaded.eos_token_id] if loaded.eos_token_id is not None else []
    if (path / "generation_config.json").is_file():
        eos = GenerationConfig.from_pretrained(path, local_files_only=True).eos_token_id
        stop += eos if isinstance(eos, list) else [eos] if eos is not None else []
    special = {name: str(token) for name, token in loaded.special_tokens_map.items() if isinstance(token, str)}
    return TextCodec(loaded.backend_tokenizer, loaded.chat_template, special, stop)
