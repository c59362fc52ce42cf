"""`python -m afterword` is the `afterword` command."""

import sys

from afterword.cli import main

if __name__ == "__main__":
    sys.exit(main())
