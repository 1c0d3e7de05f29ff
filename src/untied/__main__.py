"""The command ``untied``, also ``python -m untied``. All of it is in untied.lab, the ``lab`` extra."""

from __future__ import annotations

import os
import sys

from untied import early


def main() -> int:
    """Run the command line, or say in one line what to install. Returns the exit code."""
    try:
        from untied.lab import output
        from untied.lab.cli import main as command
    except ModuleNotFoundError as missing:
        if missing.name is None or missing.name.partition(".")[0] in ("untied", "torch"):
            raise  # our own mistake, or no PyTorch at all: the extra would not help
        print(
            f"untied: the command needs {missing.name!r}, which is not installed: pip install 'torch-untied[lab]'",
            file=sys.stderr,
        )
        return 1
    output.keep_outputs()
    os.environ["MPLBACKEND"] = "agg"  # figures are files, and a backend that is unknown would end them
    early.over()
    return output.checked(command())


if __name__ == "__main__":
    sys.exit(main())
