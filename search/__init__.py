"""How good policies are found: space, study, driver, workers, front, report, command line.

The package can be called: `skipsearch.search("digits", trials=20)` runs a search, see `api.search`. Python binds the
name `search` in `skipsearch` to this package as soon as any module in it is imported, so a function of that name would
be there or not by the order of imports.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any


class CallablePackage(ModuleType):
    """A package that runs a search when it is called."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Run `api.search`."""
        from .api import search

        return search(*arguments, **options)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        """Pickle the name, so that a function of a notebook that searches can be sent to another process."""
        return import_module, (self.__name__,)


sys.modules[__name__].__class__ = CallablePackage
