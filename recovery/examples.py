"""Training examples: a prompt, its images and its answer; and the files that hold them."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..policies.errors import TrainingDataError

PLACEHOLDER: Final = "<image>"
ROLES: Final[Mapping[str, str]] = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
MAX_LISTED = 20
# The text of a prompt from its turns, each with a role and a text; of one that ends in an answer, all of it.
Template = Callable[[Sequence[tuple[str, str]]], str]


@dataclass(frozen=True)
class Example:
    """One prompt with its answer.

    Attributes:
        prompt: The text that the model gets, with its placeholder for each image.
        answer: The text that it is to give, right after the prompt's last character.
        images: The images, as paths or as pictures.
        line: Where the example stands in its file, from 1; 0 for one without a file.
    """

    prompt: str
    answer: str
    images: tuple[Any, ...] = ()
    line: int = 0


@dataclass(frozen=True)
class Row:
    """One object of a data file, and its line."""

    line: int
    value: Any


class Problem(Exception):
    """What is wrong with one row."""


def read_examples(file: Path, images: Path, placeholder: str | None, template: Template | None) -> list[Example]:
    """Read training examples: JSON lines of prompt and answer, or conversations in LLaVA's JSON.

    Of a conversation each answer is one example, whose prompt is all that stands before it.

    Args:
        file: The file.
        images: The folder that relative paths of images begin at.
        placeholder: What stands for an image in a prompt of this model; None for a model without images.
        template: The chat template of the model; None where it has none.

    Raises:
        TrainingDataError: listing all that is wrong, by line.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as cause:
        raise TrainingDataError(f"{file} cannot be read", [str(cause)], "name a UTF-8 file of JSON") from cause
    found: list[Example] = []
    problems: list[str] = []
    for row in rows_of(text):
        try:
            found += list(examples_of(row, images, placeholder, template))
        except Problem as problem:
            problems.append(f"line {row.line}: {problem}")
    if not found and not problems:
        problems = ["found no rows"]
    if problems:
        raise data_error(str(file), problems)
    return found


def data_error(name: str, problems: Sequence[str]) -> TrainingDataError:
    """The error for training data with mistakes."""
    more = [f"and {len(problems) - MAX_LISTED} more"] if len(problems) > MAX_LISTED else []
    hint = (
        'expected rows such as {"prompt": "Question: 2 + 2 = ? Answer:", "answer": " 4"}, or {"image": "a.png", '
        '"conversations": [{"from": "human", "value": "<image> What is this?"}, {"from": "gpt", "value": "A cat."}]}'
    )
    mistakes = "1 mistake" if len(problems) == 1 else f"{len(problems)} mistakes"
    return TrainingDataError(f"{name} has {mistakes}", [*problems[:MAX_LISTED], *more], hint)


def rows_of(text: str) -> Iterator[Row]:
    """The rows of a JSON array, or of JSON lines, each with its line; a broken one has a `Problem` as its value."""
    if not text.lstrip().startswith("["):
        for number, row in enumerate(text.splitlines(), 1):
            if row.strip():
                yield Row(number, parsed(row))
        return
    decoder, place, line = json.JSONDecoder(), text.index("[") + 1, 1
    counted = 0
    while True:
        while place < len(text) and text[place] in " \t\r\n,":
            place += 1
        line, counted = line + text.count("\n", counted, place), place
        if place >= len(text) or text[place] == "]":
            if place >= len(text):
                yield Row(line, Problem("found the end of the file, expected ]"))
            return
        try:
            value, place = decoder.raw_decode(text, place)
        except json.JSONDecodeError as cause:
            yield Row(cause.lineno, Problem(f"no JSON: {cause.msg} in column {cause.colno}"))
            return
        yield Row(line, value)


def parsed(line: str) -> Any:
    """The value of one line."""
    try:
        return json.loads(line)
    except json.JSONDecodeError as cause:
        return Problem(f"no JSON: {cause.msg} in column {cause.colno}")


def examples_of(row: Row, folder: Path, placeholder: str | None, template: Template | None) -> Iterator[Example]:
    """The examples of one row.

    Raises:
        Problem: it has a mistake.
    """
    value = row.value
    if isinstance(value, Problem):
        raise value
    if not isinstance(value, dict):
        raise Problem(f"found {type(value).__name__}, expected an object")
    images = images_of(value, folder)
    if images and placeholder is None:
        raise Problem("found an image, and the model takes none")
    if "conversations" in value or "messages" in value:
        yield from of_conversation(row, images, placeholder, template)
        return
    missing = [key for key in ("prompt", "answer") if key not in value]
    if missing:
        keys = ", ".join(sorted(map(str, value))) or "none"
        raise Problem(f"found the keys {keys}; expected prompt and answer, or conversations")
    prompt, answer = text_of(value["prompt"], "prompt"), text_of(value["answer"], "answer")
    refuse_other_count(prompt, images)
    yield Example(with_placeholder(prompt, placeholder), answer, images, row.line)


def of_conversation(
    row: Row, images: tuple[Path, ...], placeholder: str | None, template: Template | None
) -> Iterator[Example]:
    """The examples of a conversation, one for each answer.

    Raises:
        Problem: it has a mistake, or the model has no chat template.
    """
    if template is None:
        raise Problem("found a conversation, and the model has no chat template; write rows of prompt and answer")
    turns = turns_of(row.value.get("conversations", row.value.get("messages")))
    refuse_other_count("".join(text for role, text in turns if role == "user"), images)
    for place in (place for place, (role, _) in enumerate(turns) if role == "assistant"):
        prompt, whole = template(turns[:place]), template(turns[: place + 1])
        # A template that shortens earlier turns has no answer that follows the prompt; then it is the text alone.
        answer = whole[len(prompt) :] if whole.startswith(prompt) else turns[place][1]
        count = sum(text.count(PLACEHOLDER) for _, text in turns[:place])
        yield Example(with_placeholder(prompt, placeholder), answer, images[:count], row.line)


def turns_of(value: Any) -> list[tuple[str, str]]:
    """The turns of a conversation, each with its role, `user`, `assistant` or `system`, and its text.

    Raises:
        Problem: it has a mistake.
    """
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise Problem("conversations: expected a list of objects with from and value")
    turns = []
    for number, turn in enumerate(value):
        role = turn.get("from", turn.get("role"))
        known = {**ROLES, "system": "system"}
        if role not in known:
            raise Problem(f"turn {number}: found from: {role!r}, expected {', '.join(known)}")
        turns.append((known[role], text_of(turn.get("value", turn.get("content")), f"turn {number}, {role}")))
    spoken = [role for role, _ in turns if role != "system"]
    if not spoken or len(spoken) % 2 or spoken != ["user", "assistant"] * (len(spoken) // 2):
        raise Problem(f"found turns of {', '.join(spoken) or 'no speaker'}, expected human and gpt in turn, gpt last")
    return turns


def text_of(value: Any, name: str) -> str:
    """A text that is not empty.

    Raises:
        Problem: it is something else.
    """
    if not isinstance(value, str):
        raise Problem(f"{name}: found {type(value).__name__}, expected text")
    if not value.strip():
        raise Problem(f"{name}: found an empty text")
    return value


def images_of(value: Mapping[str, Any], folder: Path) -> tuple[Path, ...]:
    """The paths of a row's images.

    Raises:
        Problem: one is missing, or no image.
    """
    from PIL import Image, UnidentifiedImageError

    given = value.get("images", value.get("image", []))
    names = [given] if isinstance(given, str) else given or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise Problem(f"image: found {type(given).__name__}, expected a path or a list of paths")
    paths = tuple(folder / name for name in names)
    for path in paths:
        try:
            with Image.open(path):
                pass
        except FileNotFoundError:
            raise Problem(f"image {path} does not exist") from None
        except (OSError, UnidentifiedImageError):
            raise Problem(f"image {path} cannot be read as a picture") from None
    return paths


def refuse_other_count(text: str, images: Sequence[Any]) -> None:
    """Refuse a text that has not as many placeholders as there are images.

    Raises:
        Problem: with both numbers.
    """
    count = text.count(PLACEHOLDER)
    if count != len(images):
        raise Problem(f"found {len(images)} images and {count} times {PLACEHOLDER} in the prompt")


def with_placeholder(text: str, placeholder: str | None) -> str:
    """A text with the model's own placeholder for each image."""
    return text if placeholder is None else text.replace(PLACEHOLDER, placeholder)
