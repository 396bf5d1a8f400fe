"""The page of promises names all twelve, rules that stand somewhere, and tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/spec/promises.md"


def sections():
    """Heading and text of each promise."""
    parts = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]
    return [part.split("\n", 1) for part in parts]


def names_in(path):
    tree = ast.parse(path.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_all_twelve_are_there_in_order_each_with_rules_and_tests():
    assert [heading.split(".")[0] for heading, _ in sections()] == [str(number) for number in range(1, 13)]
    for heading, text in sections():
        assert "\nRules: " in text, heading
        assert re.search(r"`tests/\S+`", text), heading


def test_every_test_named_exists():
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", PAGE.read_text())
    assert len(named) > 60
    missing = [
        f"{path}::{name}"
        for path, name in named
        if not (ROOT / path).exists() or (name and name not in names_in(ROOT / path))
    ]
    assert missing == []
    assert PAGE.read_text().count("`tests/") == len(named), "each in the form that is looked at here"


def test_every_page_and_section_linked_exists():
    text = PAGE.read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (PAGE.parent / target).resolve().exists(), target
    for page, section in re.findall(r"\]\((bus-\w+\.md)\) §(\d+)", text):
        assert re.search(rf"^## {section}\. ", (PAGE.parent / page).read_text(), flags=re.MULTILINE), (page, section)
