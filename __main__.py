"""`python -m skipsearch` is the command `skipsearch`."""

import sys

from .search.cli import main

sys.exit(main())
