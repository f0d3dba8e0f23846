"""Run the command line: ``python -m poad`` does what ``poad`` does."""

import sys

from poad.cli import main

if __name__ == "__main__":
    sys.exit(main())
