"""Text of a model as a terminal may see it. Pure."""

from __future__ import annotations

import unicodedata

_INVISIBLE = frozenset("\r\u00ad\u200b\u200c\u200d\u2060\ufeff")


def clean(text: str) -> str:
    r"""Nothing in it can drive a terminal or turn its text around; tabs and odd spaces become spaces.

    >>> clean("a\x1b[2Jb\tc")
    'a�[2Jb    c'
    """
    if text.isprintable():
        return text
    return "".join(_clean(char) for char in text)


def _clean(char: str) -> str:
    if char.isprintable() or char in "\n\u3000":
        return char
    if unicodedata.category(char) == "Zs":
        return " "
    if char == "\t":
        return "    "
    return "" if char in _INVISIBLE else "\ufffd"
