"""``python -m activefreq_engine.train``: ``activefreq train`` under a name that torchrun can start."""

import sys

from activefreq_engine.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
