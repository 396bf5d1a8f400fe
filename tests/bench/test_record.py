"""What a result says of where it comes from."""

from __future__ import annotations

from bench import record


def test_a_copy_without_history_is_told_its_commit(monkeypatch):
    monkeypatch.setenv("BENCH_COMMIT", "abc1234")
    assert record.stamp()["commit"] == "abc1234"
    monkeypatch.delenv("BENCH_COMMIT")
    assert record.stamp()["commit"] != "abc1234"
