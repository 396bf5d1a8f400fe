"""Prints what an extra of pyproject.toml asks for, extras of ours that it names included, one requirement a line.

python scripts/requirements.py dev
"""

import re
import sys
import tomllib
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
OURS = re.compile(rf"{PROJECT['name']}\[(.+)\]")


def required(extra: str) -> list[str]:
    """Requirements of one extra, those of the extras it names in their place."""
    found = []
    for requirement in PROJECT["optional-dependencies"][extra]:
        ours = OURS.fullmatch(requirement)
        found += [one for name in ours[1].split(",") for one in required(name.strip())] if ours else [requirement]
    return found


if __name__ == "__main__":
    print(*dict.fromkeys([*PROJECT["dependencies"], *required(sys.argv[1])]), sep="\n")
