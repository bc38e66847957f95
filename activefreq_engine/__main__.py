"""``python -m activefreq_engine``: the command ``activefreq``, also where it is not on the path."""

import sys

from activefreq_engine.cli import main

if __name__ == "__main__":
    sys.exit(main())
