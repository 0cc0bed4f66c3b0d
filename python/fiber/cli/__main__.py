"""`python -m fiber.cli`, for torchrun."""

import sys

from fiber.cli import main

sys.exit(main())
