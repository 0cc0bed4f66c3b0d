"""`python -m fiber`: the `fiber` command, for use where scripts are not on the PATH."""

import sys

from fiber.cli import main

sys.exit(main())
