"""Run the `fiber` command as `python -m fiber.cli`, for use with torchrun."""

import sys

from fiber.cli import main

sys.exit(main())
