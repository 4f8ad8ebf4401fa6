"""``python -m svdjax``: the same as the command ``svdjax``."""

from svdjax.cli import main

main()
