"""A tiny target with a tokenizer of characters, in a directory as transformers has it, and what students of it get."""

from __future__ import annotations

from pathlib import Path

import tokenizers
import transformers

from sled.distill.settings import Settings
from tests.sled.tiny_models import VOCAB, tiny

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIZES = (("ffn", 32), ("head_dim", 16), ("heads", 2), ("kv_heads", 1), ("layers", 1), ("vocab", 64), ("width", 32))


def tokenizer():
    """A character is a token: the printable ones but ~, newline, and the two that mark turns."""
    characters = ["Ġ", "Ċ", *(chr(code) for code in range(33, 126))]
    found = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab={char: i + 2 for i, char in enumerate(characters)}, merges=[])
    )
    found.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = tokenizers.decoders.ByteLevel()
    return found


def target_in(directory: Path, **more) -> Path:
    """The tiny Llama of 97 ids."""
    tiny("llama", **more).save_pretrained(directory)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer(), bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(directory)
    assert len(fast) == VOCAB
    return directory


def prompts_in(directory: Path) -> Path:
    """Ten short prompts; the fifth and the tenth are held out."""
    path = directory / "prompts.txt"
    path.write_text('one\ntwo\n\n"three\\nlines"\nfour\nheld five\nsix\nseven\neight\nnine\nheld ten\n')
    return path


def settings_for(target: Path, prompts: Path, **more) -> Settings:
    """Some steps of a student of one layer."""
    given = {
        "target": str(target),
        "students": ("1m",),
        "sizes": SIZES,
        "steps": 24,
        "corpus_tokens": 1500,
        "prompts": str(prompts),
        "rows": 12,
        "length": 64,
        "batch": 6,
        "warmup": 2,
        "lr": 1e-2,
    }
    return Settings(**(given | more))
