"""The program ``untied``: its own help does not wait for PyTorch, and all else is in the package `untied`."""

from __future__ import annotations

import sys
from contextlib import suppress

from untied_usage import usage

__all__ = ["main", "usage"]


def main() -> int:
    """Run the command line. Returns the exit code."""
    if sys.argv[1:2] in (["-h"], ["--help"], ["help"]):
        try:
            print(usage(), flush=True)
        except BrokenPipeError:  # the reader has seen enough
            sys.stdout = None
        except OSError as error:
            sys.stdout = None
            with suppress(OSError):
                print(f"untied: the output cannot be written: {error.strerror}", file=sys.stderr)
            return 2
        return 0
    from untied.__main__ import main as command

    return command()


if __name__ == "__main__":
    sys.exit(main())
