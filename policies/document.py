"""Reading YAML files, and reporting all mistakes in them at once, each with its line and column."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from .errors import DocumentError
from .wording import MAPPING, Key, dotted, expectation, explain, in_yaml, short
from .yamltext import MAX_DEPTH, TAG, DocumentTooLarge, composed, misread

MAX_BYTES = 1 << 18
MAX_VALUES = 100_000  # after aliases are expanded
MAX_LIST, MAX_KEYS = 1000, 10_000
MAX_PROBLEMS = 50
MAX_MISTAKES = 2500  # of which MAX_PROBLEMS are shown

Position = tuple[int, int]
KeyPath = tuple[Key, ...]
Problem = tuple[Position, str]
ModelT = TypeVar("ModelT", bound=BaseModel)

TEXT_TAGS = {f"{TAG}{name}" for name in ("str", "timestamp", "value", "merge")}
ALLOWED_TAGS: dict[type[yaml.Node], set[str]] = {
    yaml.MappingNode: {f"{TAG}map"},
    yaml.SequenceNode: {f"{TAG}seq"},
    yaml.ScalarNode: TEXT_TAGS | {f"{TAG}{name}" for name in ("int", "float", "bool", "null")},
}
NODE_NAMES: dict[type[yaml.Node], str] = {yaml.SequenceNode: "a list", yaml.ScalarNode: "a single value"}


class Document:
    """Plain data read from YAML, with the line and column of each value.

    Args:
        text: The YAML source.
        name: The name of the source in messages, usually its path.
        error: The exception to raise, so that a space and a policy fail with their own type.

    Raises:
        DocumentError: (as `error`) the text is not one YAML mapping, or exceeds a limit.
    """

    def __init__(self, text: str, name: str, error: type[DocumentError]) -> None:
        self.text = text
        self.name = name
        self.error = error
        self._positions: dict[KeyPath, Position] = {}
        self._sources: dict[KeyPath, tuple[Position, str]] = {}
        self._weight = 0
        self._problems: list[Problem] = []
        self._unread: set[KeyPath] = set()
        self._loader = yaml.SafeLoader("")
        self.data = self._mapping(text)

    @classmethod
    def read(cls, path: Path, error: type[DocumentError]) -> "Document":
        """Read a file.

        Raises:
            DocumentError: (as `error`) the file cannot be read, or see the class.
        """
        return cls(read_text(path, error), str(path), error)

    def where(self, path: KeyPath) -> str:
        """The `file:line:column` of a value, or where the file lacks it of the nearest value around it."""
        return self._place(path)[1]

    def problem(self, path: KeyPath, message: str) -> Problem:
        """One mistake, as its position and a line with the place, the key and the message."""
        position, place = self._place(path)
        label = dotted(path)
        return position, f"{place}  {label + ': ' if label else ''}{message}"

    def failure(self, problems: list[Problem], hint: str | None = None) -> DocumentError:
        """One exception that lists all problems of this document, in the order of the file."""
        lines = list(dict.fromkeys(line for _, line in sorted(problems, key=lambda problem: problem[0])))
        count = "a problem" if len(lines) == 1 else f"{len(lines)} problems"
        shown = lines[:MAX_PROBLEMS]
        if len(lines) > len(shown):
            shown.append(f"and {len(lines) - len(shown)} more")
        return self.error(f"{self.name} has {count}", shown, hint)

    def require_schema(self, *known: str) -> str:
        """Check the key `schema` before all others, to refuse a document of another kind.

        Args:
            known: The accepted values.

        Returns:
            The value found.

        Raises:
            DocumentError: (as `self.error`) the key is missing or has another value.
        """
        found = self.data.get("schema")
        if found in known:
            return str(found)
        missing = "schema" not in self.data
        reason = "the key is missing" if missing else f"found {short(found)}"
        problem = self.problem(("schema",), f"{reason}, expected {' or '.join(map(short, known))}")
        unread = [problem for problem in self._problems if ("schema",) in self._unread]
        hint = f"begin the file with {' or '.join(f'`schema: {name}`' for name in known)}" if missing else None
        raise self.failure(unread or [problem], hint)

    def check(self) -> Self:
        """Refuse mistakes in the YAML itself, such as a duplicate key.

        Raises:
            DocumentError: (as `self.error`) listing them.
        """
        if self._problems:
            raise self.failure(self._problems)
        return self

    def put(self, path: KeyPath, value: Any, source: str) -> None:
        """Set a value that is not in the file; messages give `source` as its place."""
        target: Any = self.data
        for part in path[:-1]:
            target = target[part]
        target[path[-1]] = value
        self._sources[path] = (0, len(self._sources)), source

    def checked(self, model: type[ModelT]) -> tuple[ModelT | None, list[Problem]]:
        """The data as a pydantic model, None where it is invalid, and all mistakes.

        Validators find the document in their context: they leave to its reader what that reports with lines.
        """
        try:
            return model.model_validate(self.data, context=self), list(self._problems)
        except ValidationError as cause:
            return None, self._problems + self.mistakes(model, cause)

    def validate(self, model: type[ModelT]) -> ModelT:
        """The data as a pydantic model.

        Raises:
            DocumentError: (as `self.error`) with one line for each mistake.
        """
        value, problems = self.checked(model)
        if value is None or problems:
            raise self.failure(problems)
        return value

    def mistakes(self, model: type[BaseModel], cause: ValidationError, base: KeyPath = ()) -> list[Problem]:
        """Translate pydantic's errors about the value at `base` into problems of the file.

        Pydantic reports an error for every member of a union. Type errors are dropped where another member accepted the
        type and looked inside the value; the remaining ones are merged into one line.
        """
        entries: list[tuple[KeyPath, dict[str, Any]]] = [
            (self._path_in_data((*base, *entry["loc"])), dict(entry))
            for entry in cause.errors(include_url=False)[:MAX_MISTAKES]
        ]
        entered = {path[:depth] for path, _ in entries for depth in range(len(path))}
        entered |= {path for path, entry in entries if expectation(entry) is None}
        problems = []
        expected: dict[KeyPath, list[str]] = {}
        found: dict[KeyPath, Any] = {}
        for path, entry in entries:
            wanted = expectation(entry)
            if path in self._unread or (wanted and path in entered):
                continue
            if wanted is None:
                whole = (*path, entry["loc"][-1]) if entry["type"] == "missing" else path
                problems.append(self.problem(whole, explain(model, entry)))
            else:
                expected.setdefault(path, []).append(wanted)
                found.setdefault(path, entry["input"])
        for path, ways in expected.items():
            wanted = ", or ".join(dict.fromkeys(ways))
            problems.append(self.problem(path, f"found {short(found[path])}, expected {wanted}"))
        return problems

    def _path_in_data(self, loc: KeyPath) -> KeyPath:
        """A pydantic location without the parts that the data lacks, such as names of union members."""
        path: KeyPath = ()
        value: Any = self.data
        for part in loc:
            held = value if isinstance(value, dict) else dict(enumerate(value)) if isinstance(value, list) else {}
            if part in held:
                path, value = (*path, part), held[part]
        return path

    def _place(self, path: KeyPath) -> tuple[Position, str]:
        while path and path not in self._positions and path not in self._sources:
            path = path[:-1]
        if path in self._sources:
            return self._sources[path]
        line, column = self._positions.get(path, (1, 1))
        return (line, column), f"{self.name}:{line}:{column}"

    def _at(self, position: Position, message: str) -> Problem:
        return position, f"{self.name}:{position[0]}:{position[1]}  {message}"

    def _mapping(self, text: str) -> dict[Key, Any]:
        try:
            node = composed(text)
        except DocumentTooLarge as cause:
            position = (cause.mark.line + 1, cause.mark.column + 1)
            raise self.failure([self._at(position, cause.reason)]) from None
        except yaml.MarkedYAMLError as cause:
            mark = cause.problem_mark or cause.context_mark
            position = (mark.line + 1, mark.column + 1) if mark else (1, 1)
            raise self.failure([self._at(position, in_yaml(cause.problem or cause.context or ""))]) from None
        except yaml.reader.ReaderError as cause:
            found = f"found the character #x{cause.character:04x}, which YAML does not allow"
            raise self.failure([self._at(line_and_column(text[: cause.position]), found)]) from None
        except (yaml.YAMLError, ValueError, OverflowError) as cause:
            raise self.failure([self._at((1, 1), f"not YAML: {cause}")]) from None
        if not isinstance(node, yaml.MappingNode):
            found = "nothing" if node is None else NODE_NAMES[type(node)]
            raise self.failure([self._at((1, 1), f"found {found}, expected {MAPPING}")])
        value = self._construct(node, ())
        return value if isinstance(value, dict) else {}

    def _construct(self, node: yaml.Node, path: KeyPath) -> Any:
        """Build plain data, and count values so that aliases cannot expand without bound."""
        position = (node.start_mark.line + 1, node.start_mark.column + 1)
        self._positions.setdefault(path, position)
        self._weight += 1 + (len(node.value) // 100 if isinstance(node, yaml.ScalarNode) else 0)
        if self._weight > MAX_VALUES:
            raise self.failure([self._at(position, f"aliases expand to over {MAX_VALUES} values")])
        if len(path) > MAX_DEPTH:
            raise self.failure([self._at(position, f"nested too deeply, expected at most {MAX_DEPTH} levels")])
        if node.tag not in ALLOWED_TAGS[type(node)]:
            self._refuse(path, f"found the tag {node.tag.replace(TAG, '!!')}, expected plain values")
            return None
        most = MAX_KEYS if isinstance(node, yaml.MappingNode) else MAX_LIST
        if not isinstance(node, yaml.ScalarNode) and len(node.value) > most:
            raise self.failure([self.problem(path, f"found {len(node.value)} entries, expected at most {most}")])
        if isinstance(node, yaml.MappingNode):
            return dict(self._pairs(node, path))
        if isinstance(node, yaml.SequenceNode):
            return [self._construct(item, (*path, index)) for index, item in enumerate(node.value)]
        return self._scalar(node, path)

    def _pairs(self, node: yaml.MappingNode, path: KeyPath) -> Iterator[tuple[Key, Any]]:
        seen: set[str] = set()
        for key_node, value_node in node.value:
            position = (key_node.start_mark.line + 1, key_node.start_mark.column + 1)
            plain = isinstance(key_node, yaml.ScalarNode) and key_node.tag in ALLOWED_TAGS[yaml.ScalarNode]
            reason = misread(key_node.tag, key_node.value) if plain else None
            key = self._scalar(key_node, path) if plain and reason is None else None
            if reason is not None:
                self._problems.append(self._at(position, f"found {short(key_node.value)} as a key, {reason}"))
            elif key_node.tag == f"{TAG}merge":
                self._problems.append(self._at(position, "merge keys (<<) are not read; write the keys out"))
            elif isinstance(key, bool) or not isinstance(key, str | int):
                found = short(key_node.value) if plain else "a list, mapping or tag"
                self._problems.append(self._at(position, f"found {found} as a key, expected a name or a whole number"))
            else:
                whole = (*path, key)
                if str(key) in seen:
                    self._problems.append(self._at(position, f"{dotted(whole)}: duplicate key"))
                seen.add(str(key))
                self._positions.setdefault(whole, position)
                yield key, self._construct(value_node, whole)

    def _scalar(self, node: yaml.Node, path: KeyPath) -> Any:
        if node.tag in TEXT_TAGS:
            return node.value
        reason = misread(node.tag, node.value)
        if reason is not None:
            self._refuse(path, f"found {short(node.value)}, {reason}")
            return None
        try:
            return yaml.SafeLoader.yaml_constructors[node.tag](self._loader, node)
        except (yaml.YAMLError, ValueError, KeyError, OverflowError):
            self._refuse(path, f"found {short(node.value)}, which cannot be read as {node.tag.replace(TAG, '!!')}")
            return None

    def _refuse(self, path: KeyPath, message: str) -> None:
        self._problems.append(self.problem(path, message))
        self._unread.add(path)


def line_and_column(before: str) -> Position:
    """The line and column where a text ends, counted from 1."""
    return before.count("\n") + 1, len(before) - before.rfind("\n")


def read_text(path: Path, error: type[DocumentError]) -> str:
    """The text of a file of at most `MAX_BYTES`, with plain line ends.

    Raises:
        DocumentError: (as `error`) the file cannot be read, is too large or is no UTF-8.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise error(f"{path} is too large", [f"expected at most {MAX_BYTES} bytes"])
        return raw.decode("utf-8").replace("\r\n", "\n")
    except FileNotFoundError:
        raise error(f"{path} does not exist", hint="check the path; `skipsearch ls` lists what there is") from None
    except IsADirectoryError:
        raise error(f"{path} is a folder", ["expected a YAML file"]) from None
    except UnicodeDecodeError as cause:
        line, column = line_and_column(cause.object[: cause.start].decode("utf-8"))
        found = f"found the byte 0x{cause.object[cause.start]:02x}, expected UTF-8"
        raise error(f"{path} is not UTF-8 text", [f"{path}:{line}:{column}  {found}"]) from None
    except OSError as cause:
        raise error(f"{short(str(path))} cannot be read", [str(cause.strerror)]) from None
