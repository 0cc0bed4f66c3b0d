"""`python -m fiber` is the command `fiber`, for where scripts are not on the path."""

import sys

from fiber.cli import main

sys.exit(main())
