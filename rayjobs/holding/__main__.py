"""`python -m rayjobs.holding`: the same as `deepsched holding`."""

from __future__ import annotations

import sys

from rayjobs.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["holding", *sys.argv[1:]]))
