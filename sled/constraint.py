"""Forms that an answer must have (a JSON schema, a regular expression, a Lark grammar) as masks over the vocabulary.

Pure, and for servers only: the grammars are llguidance's, which is imported when the first factory is made. Bytes
decide: any tokens that spell an allowed text are allowed, so that the model chooses how to divide it into tokens.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Collection, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sled.constraint_limits import check_grammar, check_regex, check_schema
from sled.errors import ConstraintUnavailable, FormBroken
from sled.types import Constraint

Mask = NDArray[np.uint32]

# Work and memory of one form; docs/adr/0010-constraints-by-llguidance.md has what hostile ones take under these limits.
LIMITS = {
    "max_items_in_row": 500,
    "initial_lexer_fuel": 300_000,
    "step_lexer_fuel": 100_000,
    "step_max_items": 5_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 100_000,
    "verbose_errors": False,
}
_FREE = '\n%llguidance {"no_forcing": true}\n'  # else it insists on one way to divide what is certain into tokens


class Form(Protocol):
    """A form that one answer must have, and how far the answer has got in it."""

    @property
    def finished(self) -> bool:
        """Whether nothing but a stop token may follow, or it has come."""

    def allowed(self, draft: Sequence[int]) -> Mask:
        """Which tokens may follow the committed answer, and each of these drafts; nothing is committed by it.

        Args:
            draft: k token ids.

        Returns:
            uint32 (k + 1, ceil(vocab / 32)): bit i % 32 of word i // 32 of row r says whether token i may follow
            draft[:r]. Rows behind a stop token, or behind a draft that is not allowed, hold anything.

        Raises:
            FormBroken: a row is more work than a form may cost; its `usable` drafts have rows that are not.
        """

    def commit(self, tokens: Sequence[int]) -> None:
        """These tokens follow in the answer.

        Raises:
            FormBroken: a token is more work than a form may cost.
            ValueError: one of them is not allowed; then none is committed.
        """


class FormFactory:
    """Makes forms for one target's vocabulary.

    Args:
        pieces: the bytes of every id; empty ones are never allowed.
        special_ids: control tokens: only a grammar that names them allows them.
        stop_ids: tokens that end an answer: allowed wherever the form may end. If there are none, a form that can only
            end allows nothing, and `finished` says so.
        vocab_size: columns of the logits; those beyond `pieces` are never allowed.

    Without llguidance a factory can be made, and refuses every constraint.
    """

    def __init__(
        self, pieces: Sequence[bytes], special_ids: Collection[int], stop_ids: Collection[int], vocab_size: int
    ) -> None:
        assert len(pieces) <= vocab_size
        self._library: Any = None
        self._vocab_size, self._stop_ids = vocab_size, frozenset(stop_ids)
        special = set(special_ids) | self._stop_ids
        words = [
            *map(bytes, pieces),
            *[b""] * (vocab_size - len(pieces) + 1),
        ]  # the last one ends where nothing else does
        usable = np.array([bool(word) for word in words[:vocab_size]])
        usable[list(self._stop_ids)] = True
        self._usable = _packed(usable)
        try:
            self._library = importlib.import_module("llguidance")
        except ModuleNotFoundError:
            return
        self._tokenizer = self._library.LLTokenizer(
            _Words(words, sorted(special), vocab_size), eos_token=sorted(self._stop_ids) or [vocab_size]
        )

    def __call__(self, constraint: Constraint) -> Form:
        """A form at its beginning.

        Raises:
            ConstraintUnavailable: llguidance is not installed.
            ValueError: the schema, expression or grammar is wrong, too large or too complex, or this vocabulary cannot
                spell anything of that form.
        """
        if self._library is None:
            raise ConstraintUnavailable(
                "this server takes no constraints, since llguidance is not installed: pip install 'edgebus[server]'"
            )
        limits = self._library.LLParserLimits(**LIMITS)
        matcher = self._library.LLMatcher(self._tokenizer, self._grammar(constraint), log_level=0, limits=limits)
        if matcher.is_error():
            raise ValueError(f"constraint ({constraint.kind}): {_reason(matcher)}; correct or simplify it")
        form = _MatcherForm(matcher, self._usable, self._stop_ids)
        try:
            form.allowed([])  # what cannot even begin is refused now
        except FormBroken as error:
            raise ValueError(str(error)) from None
        return form

    def _grammar(self, constraint: Constraint) -> str:
        match constraint.kind:
            case "json_schema":
                return "start: %json " + json.dumps(check_schema(constraint.text)) + _FREE
            case "regex":
                check_regex(constraint.text)
                wrapped = json.loads(self._library.LLMatcher.grammar_from_regex(constraint.text))
                return str(wrapped["grammars"][0]["lark_grammar"]) + _FREE
            case "grammar":
                check_grammar(constraint.text)
                return constraint.text + _FREE


class _Words:
    """A vocabulary as llguidance's constructor asks for it."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, words: list[bytes], special_ids: list[int], end_id: int) -> None:
        self.tokens, self.special_token_ids, self.eos_token_id = words, special_ids, end_id

    def __call__(self, text: bytes) -> list[int]:
        raise NotImplementedError("text is never divided into tokens here")


class _MatcherForm:
    """A `Form` by a matcher of llguidance; drafts are followed on a copy, so that they leave no trace.

    A matcher that refuses a token stays where it was; a copy takes the time that its text is long.
    """

    def __init__(self, matcher: Any, usable: Mask, stop_ids: frozenset[int]) -> None:
        self._matcher, self._usable, self._stop_ids = matcher, usable, stop_ids
        self._ended = False
        self._length = 0

    @property
    def finished(self) -> bool:
        """See `Form`."""
        return self._ended or bool(self._matcher.is_stopped())

    def allowed(self, draft: Sequence[int]) -> Mask:
        """See `Form`."""
        masks = np.tile(self._usable, (len(draft) + 1, 1))
        matcher = self._matcher.deep_copy() if len(draft) else self._matcher
        for row, token in enumerate([*draft, -1]):
            if self._ended:
                break
            row_of = np.frombuffer(matcher.compute_bitmask(), np.uint32)
            if matcher.is_error():
                raise _broken(matcher, row - 1)
            masks[row] &= row_of[: masks.shape[1]]
            if not self._may_follow(masks[row], token):
                break
            matcher.try_consume_tokens([token])
            if matcher.is_error():
                raise _broken(matcher, row)
        return masks

    def commit(self, tokens: Sequence[int]) -> None:
        """See `Form`."""
        matcher, ended = self._matcher.deep_copy() if len(tokens) > 1 else self._matcher, self._ended
        for index, token in enumerate(tokens):
            if token in self._stop_ids and not ended and (matcher.is_stopped() or matcher.is_accepting()):
                ended = True
            elif ended or not self._may_follow(self._usable, token) or matcher.try_consume_tokens([token]) != 1:
                if matcher.is_error():
                    raise _broken(matcher, -1)
                raise ValueError(
                    f"token {token}, number {self._length + index} of the answer, is not allowed by its form; "
                    "continue an answer with the constraint it began with"
                )
        self._matcher, self._ended = matcher, ended
        self._length += len(tokens)

    @staticmethod
    def _may_follow(mask: Mask, token: int) -> bool:
        return 0 <= token < 32 * len(mask) and bool(mask[token // 32] >> np.uint32(token % 32) & np.uint32(1))


def _packed(flags: NDArray[np.bool_]) -> Mask:
    """Flags (vocab,) as bits, uint32 (ceil(vocab / 32),)."""
    padded = np.zeros(-(-len(flags) // 32) * 32, np.bool_)
    padded[: len(flags)] = flags
    return np.packbits(padded, bitorder="little").view("<u4").astype(np.uint32)


def _broken(matcher: Any, usable: int) -> FormBroken:
    return FormBroken(f"the answer's form is too complex here: {_reason(matcher)}; simplify it", usable)


def _reason(matcher: Any) -> str:
    """Why a matcher gave up, in one line."""
    reason = str(matcher.get_error()).split("\n", 1)[0][:200]
    return "nothing that this vocabulary can spell may follow" if reason.startswith("NoExtension") else reason
