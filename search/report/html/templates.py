"""HTML templates of the report, rendered by jinja2 with autoescape on."""

import re
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


@cache
def _environment() -> Environment:
    found = Environment(
        loader=PackageLoader(__package__, ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["unbroken"] = unbroken
    return found


def unbroken(text: str) -> str:
    """A text whose lines break neither between a number and `%` nor beside `±`."""
    return re.sub(r"(?<=\d) (?=%)| (?=±)|(?<=±) ", "\N{NO-BREAK SPACE}", text)


def render(template: str, **values: Any) -> str:
    """One template of this folder as HTML; every value is escaped unless the template marks it safe."""
    return _environment().get_template(template).render(values)
