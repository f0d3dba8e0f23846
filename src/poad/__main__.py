"""Run the command line: ``python -m poad`` does what ``poad`` does."""

import os
import sys

if sys.path[0] == os.getcwd():  # a file in this directory must not pass for a library
    del sys.path[0]

from poad.cli import main

if __name__ == "__main__":
    sys.exit(main())
