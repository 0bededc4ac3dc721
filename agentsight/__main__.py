"""``python -m agentsight`` is the command ``agentsight``."""

import sys

from agentsight.cli import main

if __name__ == "__main__":
    sys.exit(main())
