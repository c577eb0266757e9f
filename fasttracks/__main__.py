"""`python -m fasttracks` is the program `fasttracks`."""

import sys

from fasttracks.cli.main import main

sys.exit(main())
