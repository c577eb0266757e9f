"""`python -m fasttracks` is the program `fasttracks`."""

import sys

from fasttracks.cli import main

sys.exit(main())
