"""`python -m rayjobs` is `deepsched`."""

import sys

from rayjobs.cli.main import main

sys.exit(main())
