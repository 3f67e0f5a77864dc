"""`python -m rayjobs.steer COMMAND` is `deepsched steer COMMAND`."""

import sys

from rayjobs.cli.main import main

sys.exit(main(["steer", *sys.argv[1:]]))
