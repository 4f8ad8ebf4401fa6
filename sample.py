"""Animate photos: ``python sample.py [PHOTO ...] --checkpoint SRC --out DIR`` (the same as ``svdjax sample``)."""

import sys

from svdjax.cli import main

if __name__ == "__main__":
    main(["sample", *sys.argv[1:]])
