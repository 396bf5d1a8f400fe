"""The link benchmark: every drafter and window is measured, and the figure is the least of all of them."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("torch")

from bench.macro import _links_measured as measured
from bench.macro import links

LINK = links.LINKS[0]


def row(drafter: str, window: int | str, rate: float, num_answers: int = 2) -> dict[str, object]:
    return {
        "link": LINK.name,
        "drafter": drafter,
        "window": window,
        "tokens_per_s": rate,
        "each": [[40, 40 / rate]] * num_answers,
    }


def test_each_drafter_has_each_window_and_auto():
    found = {(case.drafter, case.window) for case in measured.cases(LINK)}
    assert {(drafter, window) for drafter in links.DRAFTERS for window in (measured.AUTO, *measured.WINDOWS)} <= found
    assert {("stream", measured.AUTO), ("ngram+smollm2-12m", measured.AUTO)} <= found


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


def test_held_out_ratio_is_against_the_window_that_was_best_on_the_other_prompts(monkeypatch):
    monkeypatch.setattr(links, "DRAFTERS", ["ngram"])
    # 1 is best of all by one lucky answer, which does not count where it is chosen by it.
    each = {"auto": [1.0, 1.0, 1.0], 0: [1.1, 1.1, 1.1], 1: [0.2, 1.3, 1.3]}
    rows = [{**row("ngram", window, 0.0 + 1), "each": [[10, s] for s in spent]} for window, spent in each.items()]
    (held,) = links.ratios(rows)
    assert held["best_fixed"] == 1
    assert held["ratio"] == round(2.8 / 3.0, 3)
    assert held["ratio_held_out"] == round((1.1 + 1.3 + 1.3) / 3.0, 3)


def test_answers_kept_in_several_files_are_put_together_by_prompt(tmp_path):
    case = ["bad", "stream", measured.AUTO]
    for name, numbers in (("bad-0-0", [0, 4]), ("bad-0-1", [2]), ("bad-2-0", [1])):
        (tmp_path / f"{name}.json").write_text(json.dumps([[case, [{"number": each} for each in numbers]]]))
    (seen,) = links._seen_in(tmp_path).values()
    assert [each["number"] for each in seen] == [0, 1, 2, 4]


def test_side_by_side_wants_cores_for_all_links(monkeypatch, tmp_path):
    monkeypatch.setattr(links.os, "sched_getaffinity", lambda _: {0, 1})
    with pytest.raises(SystemExit, match="12 cores, and there are 2"):
        links.side_by_side(tmp_path, 1, 1.0)


def test_held_out_ratio_of_a_single_prompt_is_not_given(monkeypatch):
    monkeypatch.setattr(links, "DRAFTERS", ["ngram"])
    (held,) = links.ratios([row("ngram", "auto", 8.0, 1), row("ngram", 0, 10.0, 1)])
    assert held["ratio_held_out"] is None


@pytest.mark.parametrize("options", [["--drafters", "smollm2-12m"], ["--links", "lan"], ["--tokens", "9"]])
def test_a_part_of_it_is_not_recorded_as_the_whole(options):
    with pytest.raises(SystemExit) as refused:
        links.main(options)
    assert refused.value.code == 2
