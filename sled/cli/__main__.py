"""`python -m sled.cli`."""

from sled.cli import main

main()
