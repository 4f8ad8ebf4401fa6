"""Train a model: ``python train.py [CONFIG.py] [--stage.option value ...]``; see ``configs/``."""

import sys

from svdjax.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
