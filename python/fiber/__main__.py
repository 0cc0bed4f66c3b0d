"""Run the `fiber` command as `python -m fiber`, for when scripts are not on the PATH."""

import sys

from fiber.cli import main

sys.exit(main())
