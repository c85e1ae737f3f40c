"""The names of the package, whose docstrings mkdocstrings turns into text."""

import skipsearch

CALLED = {"search": "search.api.search"}  # a package of that name, and the function that a call of it runs


def python_api() -> str:
    """An entry for each name that `import skipsearch` offers, in the order of the alphabet."""
    names = sorted(skipsearch.__all__, key=str.lower)
    return "\n".join(f"::: skipsearch.{CALLED.get(name, name)}\n" for name in names)
