"""``python -m fastsparse``: the command line."""

import sys

from fastsparse.cli import main

sys.exit(main())
