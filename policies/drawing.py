"""Draws a policy in a notebook.

What draws is named by an entry point, because applying a policy must not need the packages that drawing one does.
"""

from importlib.metadata import entry_points
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .policy import Policy


def drawing(policy: "Policy") -> str | None:
    """A policy as HTML; None where nothing that draws it is installed."""
    for entry in entry_points(group="skipsearch.drawings", name="policy"):
        try:
            return str(entry.load()(policy))
        except ModuleNotFoundError:
            return None
    return None
