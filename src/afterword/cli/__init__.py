"""The command line: the composition root that wires rooms together.

Owns parsing, printing and exit codes; contains no rule of the system. Rooms that need torch are imported inside
the commands that need them, so that `serve`, `status` and the rest start at once.
"""

from afterword.cli.entry import main

__all__ = ["main"]
