"""`python -m fiber.cli`: the `fiber` command, for use with torchrun."""

import sys

from fiber.cli import main

sys.exit(main())
