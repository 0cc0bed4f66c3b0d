"""`python -m fiber.cli`, which is how torchrun starts the command on several processes."""

import sys

from fiber.cli import main

sys.exit(main())
