"""``python -m poad`` is the same as ``poad``."""

import sys

from poad.cli import main

if __name__ == "__main__":
    sys.exit(main())
