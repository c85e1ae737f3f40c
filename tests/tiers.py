"""Which cases of a long column run in every test run; the others run in `make soak`."""

from collections.abc import Iterable
from typing import Any

import pytest


def soak(*case: Any) -> Any:
    """A case that runs in `make soak` alone."""
    return pytest.param(*case, marks=pytest.mark.soak)


def sample(cases: Iterable[Any], one_of: int, first: int = 0) -> list[Any]:
    """Cases of which one of so many runs in every test run."""
    return [
        case if number % one_of == first else soak(*(case if isinstance(case, tuple) else (case,)))
        for number, case in enumerate(cases)
    ]
