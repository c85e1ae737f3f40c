"""The text formats by name, and which of them a file is in."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...policies.choice import LAST_LAYER
from ...policies.document import read_text
from ...policies.errors import PolicyError
from ...policies.policy import Policy
from . import evopress, llm_drop, mergekit, swift
from .sublayers import Given


@dataclass(frozen=True)
class TextFormat:
    """One format.

    Attributes:
        file: The name that its tool gives to a file.
        sign: What a file of this format has, and no other.
        matches: True for a text of this format.
        write: The text of a policy; an ExportError names what the format cannot say.
        read: The policy of a text; a PolicyError names its mistakes, with their places.
    """

    file: str
    sign: str
    matches: Callable[[Given], bool]
    write: Callable[[Policy], str]
    read: Callable[[Given], Policy]


FORMATS = {
    "mergekit": TextFormat(mergekit.FILE, mergekit.SIGN, mergekit.matches, mergekit.write, mergekit.read),
    "llm-drop": TextFormat(llm_drop.FILE, llm_drop.SIGN, llm_drop.matches, llm_drop.write, llm_drop.read),
    "evopress": TextFormat(evopress.FILE, evopress.SIGN, evopress.matches, evopress.write, evopress.read),
    "swift": TextFormat(swift.FILE, swift.SIGN, swift.matches, swift.write, swift.read),
}
AUTO = "auto"


def read_file(
    path: Path, name: str = AUTO, num_layers: int | None = None, entry: str | None = None
) -> tuple[str, Policy]:
    """Import the policy of a file.

    Args:
        path: The file.
        name: Its format; `auto` finds out.
        num_layers: The number of layers of the model; None where it is in the file.
        entry: Which of several policies in the file.

    Returns:
        The format and the policy.

    Raises:
        PolicyError: the file cannot be read, is in no known format, or has mistakes.
    """
    if num_layers is not None and num_layers > LAST_LAYER + 1:
        raise PolicyError("too many layers", [f"found {num_layers}, expected at most {LAST_LAYER + 1}"])
    given = Given(read_text(path, PolicyError), str(path), num_layers, entry)
    found = format_of(given) if name == AUTO else name
    if entry is not None and found != "swift":
        hint = "leave out --entry"
        raise PolicyError(f"a file of {found} has one policy", [f"found {path} and the entry {entry!r}"], hint)
    return found, FORMATS[found].read(given)


def format_of(given: Given) -> str:
    """The name of a text's format.

    Raises:
        PolicyError: it is in none.
    """
    found = next((name for name, one in FORMATS.items() if one.matches(given)), None)
    if found is None:
        if "schema" in given.keys:
            hint = "`skipsearch validate` checks it, and every command takes a policy as it is"
            raise PolicyError(f"{given.name} is a file of skipsearch already", hint=hint)
        details = [f"{name}: expected {one.sign}" for name, one in FORMATS.items()]
        hint = "name the format with --format, to see the mistakes of the file"
        raise PolicyError(f"{given.name} is in no format that can be imported", details, hint)
    return found
