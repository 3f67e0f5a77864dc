"""`python -m rayjobs.admission`: the same as `deepsched admission`."""

from __future__ import annotations

import sys

from rayjobs.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["admission", *sys.argv[1:]]))
