"""What `compare` says of workers that end before they train."""

from __future__ import annotations

from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool

import pytest

from untied.errors import UntiedError
from untied.lab.experiments.compare import raise_failure


def test_workers_that_do_not_start_point_to_the_main_guard() -> None:
    """A script without one is run again by each worker, which then ends at once."""
    future: Future[None] = Future()
    future.set_exception(BrokenProcessPool())
    with pytest.raises(UntiedError, match=r"fewer --workers; .*if __name__ == '__main__'.*workers=0"):
        raise_failure([future])
