"""`python -m qpart.cli`."""

from qpart.cli import main

main()
