"""The link benchmark: every drafter and window is measured, and the figure is the least of all of them."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from bench.macro import links

LINK = links.LINKS[0]


def row(drafter: str, window: int | str, rate: float, num_answers: int = 2) -> dict[str, object]:
    return {
        "link": LINK.name,
        "drafter": drafter,
        "window": window,
        "tokens_per_s": rate,
        "each_tokens_per_s": [rate] * num_answers,
    }


def test_each_drafter_has_each_window_and_auto_on_the_first_prompt():
    found = {(case.drafter, case.window) for case, _ in links.cases(LINK, 0)}
    assert {(drafter, window) for drafter in links.DRAFTERS for window in (links.AUTO, *links.WINDOWS)} <= found
    assert {("stream", links.AUTO), ("ngram+smollm2-12m", links.AUTO)} <= found


def test_no_window_of_the_model_is_left_out_on_a_later_prompt():
    windows = {case.window for case, _ in links.cases(LINK, 1) if case.drafter == "smollm2-12m"}
    assert windows == {links.AUTO, *links.WINDOWS}


def test_figure_is_the_least_of_every_drafter_and_says_what_it_is_held_against():
    rows = [row("ngram", "auto", 8.0), row("ngram", 0, 10.0), row("ngram", 4, 5.0)]
    rows += [row("smollm2-12m", "auto", 20.0), row("smollm2-12m", 0, 10.0), row("smollm2-12m", 4, 16.0)]
    held = links.ratios(rows)
    assert [(each["drafter"], each["best_fixed"], each["ratio"]) for each in held] == [
        ("ngram", 0, 0.8),
        ("smollm2-12m", 4, 1.25),
    ]
    figure = links.figure_of(held, {"cpu": "a", "cores": 2, "commit": "c"})
    assert figure["value"] == 0.8
    assert "ngram" in figure["unit"]
    assert "the best of windows 0" in figure["peer"]


@pytest.mark.parametrize("options", [["--drafters", "smollm2-12m"], ["--links", "lan"], ["--tokens", "9"]])
def test_a_part_of_it_is_not_recorded_as_the_whole(options):
    with pytest.raises(SystemExit) as refused:
        links.main(options)
    assert refused.value.code == 2
