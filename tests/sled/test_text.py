"""A tokenizer out of the metadata of a GGUF file: read, or refused by name whatever the file says."""

from __future__ import annotations

import pytest

pytest.importorskip("tokenizers")

from sled.errors import UnknownModel
from sled.targets.text import codec_from_gguf

pytestmark = pytest.mark.model
METADATA = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": ["<s>", "a", "b", "aa"],
    "tokenizer.ggml.token_type": [3, 1, 1, 1],
    "tokenizer.ggml.merges": ["a a"],
    "tokenizer.ggml.eos_token_id": 0,
}


def test_a_tokenizer_is_read_from_metadata():
    codec = codec_from_gguf(METADATA)
    assert codec.encode("aab<s>", chat=False) == [3, 2, 0]
    assert (codec.stop_ids, codec.special) == ([0], {"eos_token": "<s>"})


@pytest.mark.parametrize(
    "changed",
    [
        {"merges": ["a c"]},
        {"merges": ["a"]},
        {"merges": [1]},
        {"merges": None},
        {"token_type": [3]},
        {"tokens": [1, 2, 3, 4]},
        {"pre": ["smollm"]},
        {"eos_token_id": 9},
        {"eos_token_id": "<s>"},
        {"eot_token_id": 0.5},
    ],
)
def test_metadata_that_contradicts_itself_is_refused(changed):
    with pytest.raises(UnknownModel, match="GGUF file's"):
        codec_from_gguf(METADATA | {f"tokenizer.ggml.{key}": value for key, value in changed.items()})


def test_a_chat_template_that_is_no_text_is_refused():
    with pytest.raises(UnknownModel, match="chat template"):
        codec_from_gguf(METADATA | {"tokenizer.chat_template": 7})
