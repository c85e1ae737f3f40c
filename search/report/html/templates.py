"""HTML templates of the report, rendered by jinja2 with autoescape on."""

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader(__package__, ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(template: str, **values: Any) -> str:
    """One template of this folder as HTML; every value is escaped unless the template marks it safe."""
    return _environment().get_template(template).render(values)
