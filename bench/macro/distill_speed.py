"""What a run of `sled distill` on a GPU did: speeds and acceptance, from the report that it wrote.

    sled distill --target smollm2-135m --out DIR --student 12m --student prune:0,1 --minutes 5
    python -m bench.macro.distill_speed DIR

The peer is the script that made the packaged drafter, on the same kind of GPU: 126,000 tokens/s of sampling and 580,000
tokens/s of training two students (the design's measurement, not of the same run). Writes bench/results/distill.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from bench import record

COMMAND = "python -m bench.macro.distill_speed DIR"
PEER = "the script that made the packaged drafter, one H100: 126,000 sampling, 580,000 training two students"


def summary(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Speeds and the last acceptance of every student.

    Raises:
        ValueError: the run has not ended.
    """
    if not events or events[-1]["event"] != "finished":
        raise ValueError("the report has no end: let the run finish first")
    sampled = [event["tokens_per_s"] for event in events if event["event"] == "sampled"]
    trained = [event["tokens_per_s"] for event in events if event["event"] == "trained"]
    measured = {event["student"]: event["acceptance"] for event in events if event["event"] == "evaluated"}
    return {
        "device": events[-1]["device"],
        "minutes": events[-1]["minutes"],
        "steps": events[-1]["steps"],
        "sampling_tokens_per_s": statistics.median(sampled),
        "training_tokens_per_s": statistics.median(trained),
        "acceptance": measured,
    }


def main() -> None:
    """Read a report, record it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    directory = parser.parse_args().directory
    found = summary([json.loads(line) for line in (directory / "report.jsonl").read_text().splitlines()])
    stamped = {**record.stamp(), "cpu": found["device"]}
    figures = {
        f"sled.distill.{kind}_tokens_per_s": {
            **record.figure(found[f"{kind}_tokens_per_s"], unit, PEER, COMMAND, stamped),
            "machine": found["device"],
        }
        for kind, unit in (
            ("sampling", "tokens/s that the target writes, median of its rounds"),
            ("training", "tokens/s of a corpus that two students learn from, median of its lines of progress"),
        )
    }
    record.write("distill", found, figures, stamped)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
