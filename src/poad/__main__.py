"""``python -m poad`` is the same as ``poad``."""

from poad.cli import main

if __name__ == "__main__":
    main()
