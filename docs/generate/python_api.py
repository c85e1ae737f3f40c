"""The names of the package, whose docstrings mkdocstrings turns into text."""

import skipsearch


def python_api() -> str:
    """An entry for each name that `import skipsearch` offers, in the order of the alphabet."""
    return "\n".join(f"::: skipsearch.{name}\n" for name in sorted(skipsearch.__all__, key=str.lower))
