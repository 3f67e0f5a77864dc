"""`python -m rayjobs` is `deepsched`."""

import sys

from rayjobs.cli import main

sys.exit(main())
