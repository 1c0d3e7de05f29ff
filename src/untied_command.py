"""The program ``untied``: its own help does not wait for PyTorch, and all else is in the package `untied`."""

from __future__ import annotations

import sys

from untied_usage import usage

__all__ = ["main", "usage"]


def main() -> int:
    """Run the command line. Returns the exit code."""
    if sys.argv[1:2] in (["-h"], ["--help"], ["help"]):
        print(usage())
        return 0
    from untied.__main__ import main as command

    return command()


if __name__ == "__main__":
    sys.exit(main())
