"""Finding the plug-ins of installed packages by entry point, beside what is built in."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from .errors import SkipsearchError
from .wording import nearest


@dataclass(frozen=True)
class PluginGroup:
    """One kind of plug-in.

    Attributes:
        group: The name of its group of entry points.
        noun: What messages call one, such as `evaluator`.
        built_in: By name, where those that come with skipsearch are, as `module:class`.
        problems: What an object lacks to be the plug-in of a name, one line each.
        error: The exception for one that is unknown or has mistakes.
    """

    group: str
    noun: str
    built_in: Mapping[str, str]
    problems: Callable[[Any, str], Iterable[str]]
    error: type[SkipsearchError]

    def available(self) -> tuple[str, ...]:
        """The names of all plug-ins, built in or from installed packages."""
        return tuple(sorted({*self.built_in, *(entry.name for entry in installed(self.group))}))

    def find(self, name: str) -> Any:
        """Find a plug-in by its name.

        Raises:
            SkipsearchError: there is none, several packages have one, or it lacks a part of the interface.
        """
        found = {entry.value: entry for entry in installed(self.group) if entry.name == name}
        if name in self.built_in:
            found[self.built_in[name]] = EntryPoint(name, self.built_in[name], self.group)
        if not found:
            names = self.available()
            hint = f"available: {', '.join(names)}"
            raise self.error(f"there is no {self.noun} '{name}'", [nearest(name, list(names))], hint)
        if len(found) > 1:
            origins = [f"{value}, {origin(entry)}" for value, entry in sorted(found.items())]
            hint = "uninstall one of the packages, or rename its entry point"
            raise self.error(f"the {self.noun} '{name}' exists {len(found)} times", origins, hint)
        return self._load(*found.values())

    def _load(self, entry: EntryPoint) -> Any:
        try:
            found = entry.load()
        except (ImportError, AttributeError) as cause:
            where = [f"{entry.value}, {origin(entry)}", str(cause)]
            raise self.error(f"the {self.noun} '{entry.name}' cannot be imported", where) from cause
        problems = [*self.problems(found, entry.name)]
        if problems:
            raise self.error(f"{entry.value}, {origin(entry)}, is no {self.noun}", problems)
        return found


@cache
def installed(group: str) -> tuple[EntryPoint, ...]:
    """The plug-ins of installed packages; read once a process, because it opens a file of every package."""
    return tuple(entry_points(group=group))


def origin(entry: EntryPoint) -> str:
    """The package that a plug-in comes from."""
    return f"from {entry.dist.name} {entry.dist.version}" if entry.dist else "built in"
