"""``python -m mfcore`` is the command ``mfcore``."""

import sys

from mfcore.cli import main

if __name__ == "__main__":
    sys.exit(main())
