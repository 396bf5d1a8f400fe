"""A target's chat template as runs of token ids: what stands before, between and behind the turns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jinja2.exceptions import TemplateError

from sled.errors import UnknownModel
from sled.targets.text import TextCodec

_MARKS = ("8f1cQuestion", "8f1cAnswer", "8f1cAnother")


@dataclass(frozen=True, slots=True)
class Conversation:
    """Runs of ids around turns.

    Args:
        opening: up to where the first user's text begins.
        to_answer: from the end of a user's text to where the answer begins.
        to_user: from the end of an answer, its stop token not counted, to where the next user's text begins.
        encode: text to ids, without special tokens of its own.
        stop_ids: ids that end a turn.
    """

    opening: list[int]
    to_answer: list[int]
    to_user: list[int]
    encode: Callable[[str], list[int]]
    stop_ids: frozenset[int]

    def first(self, prompt: str) -> list[int]:
        """A text's beginning, up to its first answer."""
        return self.opening + self.encode(prompt) + self.to_answer

    def following(self, prompt: str) -> list[int]:
        """What stands between an answer and the next, behind the stop token."""
        return self.to_user + self.encode(prompt) + self.to_answer

    def answering(self) -> list[int]:
        """What stands between a user's text and its answer where the user's turn ended with a stop token."""
        drop = bool(self.to_answer) and self.to_answer[0] in self.stop_ids
        return self.to_answer[drop:]


def conversation_of(codec: TextCodec) -> Conversation:
    """What a tokenizer's chat template puts around turns; without a template, prompts stand as they are.

    Raises:
        UnknownModel: the template fails, or does not show the turns it is given.
    """

    def encode(text: str) -> list[int]:
        return list(codec.tokenizer.encode(text, add_special_tokens=False).ids)

    stop_ids = frozenset(codec.stop_ids)
    if codec.chat_template is None:
        start = list(codec.tokenizer.encode("").ids)
        return Conversation([i for i in start if i not in stop_ids], [], [], encode, stop_ids)
    before, to_answer, to_user = _between(codec)
    between = encode(to_user)
    if between and between[0] in stop_ids:
        between = between[1:]
    return Conversation(encode(before), encode(to_answer), between, encode, stop_ids)


def _between(codec: TextCodec) -> tuple[str, str, str]:
    """The template's text before a first question, from question to answer, and from answer to question."""
    question, answer, another = _MARKS
    first = _render(codec, [("user", question)])
    before, found, to_answer = first.partition(question)
    if not found:
        raise UnknownModel("the model's chat template does not show what the user says; use another target")
    try:
        whole = _render(codec, [("user", question), ("assistant", answer), ("user", another)])
        _, _, rest = whole.partition(answer)
        to_user, found, _ = rest.partition(another)
    except UnknownModel:
        found = ""
    return before, to_answer, to_user if found else before  # without it, the next turn begins a conversation anew


def _render(codec: TextCodec, turns: list[tuple[str, str]]) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = [{"role": role, "content": content} for role, content in turns]
    try:
        rendered, _ = render_jinja_template(
            [messages], chat_template=codec.chat_template, add_generation_prompt=True, **codec.special
        )
    except (TemplateError, TypeError, ValueError, KeyError) as error:
        raise UnknownModel(f"the model's chat template failed: {error}; use another target") from None
    return str(rendered[0])
