"""Small random models of many families, a tokenizer that is none, and pages handed out in no order."""

from __future__ import annotations

import numpy as np
import torch
import transformers

from sled.messages import Vocabulary
from sled.types import Chunk

VOCAB = 97
_COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
_ALTERNATING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}
FAMILIES = {
    "llama": ("llama", {}),
    "qwen2": ("qwen2", {}),
    "qwen2, window 8": ("qwen2", {"use_sliding_window": True, "max_window_layers": 0, **_ALTERNATING}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral, window 8": ("mistral", {"sliding_window": 8}),
    "gemma": ("gemma", {"head_dim": 16}),
    "gemma2": ("gemma2", {"head_dim": 16, "query_pre_attn_scalar": 24, "attn_logit_softcapping": 0.4, **_ALTERNATING}),
    "gemma3": ("gemma3_text", {"head_dim": 16, "query_pre_attn_scalar": 24, **_ALTERNATING}),
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}),
    "phi": ("phi", {"partial_rotary_factor": 0.5}),
    "phi3": ("phi3", {"pad_token_id": 0, "sliding_window": None}),
    "phi3, window 8": ("phi3", {"pad_token_id": 0, "sliding_window": 8}),
    "gpt_neox": ("gpt_neox", {"rotary_pct": 0.25}),
    "starcoder2": ("starcoder2", {"sliding_window": None}),
    "olmo2": ("olmo2", {}),
    "granite": ("granite", {"attention_multiplier": 0.3}),
    "cohere": ("cohere", {}),
}

BACKENDS = ("torch", "cpu")


def tiny(family: str, dtype: torch.dtype = torch.float32, **more):
    """A random model of one family: 2 layers, width 32, weights large enough for attention to matter."""
    kind, own = FAMILIES[family]
    common = {"vocab_size": VOCAB} if kind == "gpt2" else _COMMON
    config = transformers.AutoConfig.for_model(kind, **{**common, **own, **more})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    torch.manual_seed(1)
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.3)
    return model.to(dtype)


def save_with_tokenizer(model, directory) -> None:
    """Model and tokenizer as a directory in Hugging Face layout."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"w{i}": i for i in range(97)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w96").save_pretrained(directory)
    model.save_pretrained(directory)


class FakeCodec:
    stop_ids = (0,)

    def vocabulary(self):
        return Vocabulary([b""] * VOCAB, [])


class Paging:
    """Pages of a target's pool in random order, as many as a text needs."""

    def __init__(self, target, seed: int = 0) -> None:
        self.page_tokens = target.shape.page_tokens
        self.free = np.random.default_rng(seed).permutation(target.shape.num_pages).tolist()
        self.pages: dict[object, list[int]] = {}

    def chunk(self, name, tokens, past: int, num_logits: int) -> Chunk:
        own = self.pages.setdefault(name, [])
        while len(own) * self.page_tokens < past + len(tokens):
            own.append(self.free.pop())
        return Chunk(str(name).encode(), tuple(tokens), past, num_logits, tuple(own))

    def share(self, name, other, positions: int) -> None:
        """Let `name` begin with the whole pages that hold the first `positions` of `other`."""
        self.pages[name] = self.pages[other][: positions // self.page_tokens]


@torch.inference_mode()
def plain_rows(model, text, count: int):
    """The last `count` rows of the model's own forward over a whole text."""
    return model(torch.tensor([list(text)])).logits[0, len(text) - count :].float()


def fill_with_nan(target) -> None:
    """Put into every page what a failed forward may have left there."""
    for module in target.model.modules():
        for part in getattr(module, "sled_pool", ()):
            part.fill_(float("nan"))
