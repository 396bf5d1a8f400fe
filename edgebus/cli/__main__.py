"""`python -m edgebus.cli`."""

from edgebus.cli import main

main()
