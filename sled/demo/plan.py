"""What the demo runs: four devices, their drafters and their prompts."""

from __future__ import annotations

from dataclasses import dataclass

from sled.types import Sampling

MODEL = "smollm2-135m"
MAX_TOKENS = 64

_QUOTE = (
    "Repeat this text word by word, twice: The sea, once it casts its spell, holds one in its net of wonder "
    "forever. The sea, once it casts its spell, holds one in its net of wonder forever."
)


@dataclass(frozen=True, slots=True)
class Role:
    """One device of the demo."""

    name: str
    drafter: str
    prompt: str
    sampling: Sampling = Sampling()

    @property
    def greedy(self) -> bool:
        return self.sampling.temperature == 0

    def arguments(self) -> list[str]:
        """Command line after `sled generate`, without the server's address and keys."""
        s = self.sampling
        sampled = [] if self.greedy else ["--temperature", str(s.temperature), "--seed", str(s.seed)]
        return [self.prompt, "--drafter", self.drafter, "--max-tokens", str(MAX_TOKENS), *sampled]


ROLES = (
    Role("phone", "none", "Why is the sky blue? Answer in two sentences."),
    Role("scanner", "ngram", _QUOTE),
    Role("laptop", "smollm2-12m", "Write a short story about a fox who learns to swim."),
    Role("tablet", "smollm2-12m", "Tell me a fun fact about the moon.", Sampling(temperature=0.8, seed=7)),
)
