"""What holds for all tests: torch's threads sleep while they wait, nothing is loaded from a hub."""

from edgebus.cli.environment import set_environment

set_environment()
