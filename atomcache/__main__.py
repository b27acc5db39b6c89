"""``python -m atomcache``: the same as the command ``atomcache``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
