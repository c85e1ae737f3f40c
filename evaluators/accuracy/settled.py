"""Where an answer may end early: a task's filter takes a match from its beginning, and no further text can change that.

A task with a `regex` filter looks for a pattern in the answer and often takes the first match. Once every way in which
the pattern can match from there on, or from before, has ended inside the text so far, the match stays what it is.
"""

import importlib
import re
from collections.abc import Iterator
from typing import Any

import regex
from lm_eval.api.task import Task
from lm_eval.filters.extraction import RegexFilter

# What looks at the text behind the match, or at another match.
LOOKS_FURTHER = ("AT", "ASSERT", "ASSERT_NOT", "GROUPREF", "GROUPREF_EXISTS", "GROUPREF_IGNORE")
# A tokenizer may still rewrite so many of the last characters: parts of a character, and spaces before punctuation.
UNSURE = 8


class Settled:
    """Says when the match that a filter takes cannot change any more.

    Args:
        pattern: The pattern, without anything that looks behind its match.
        number: Which match the filter takes, counted from 0.
    """

    def __init__(self, pattern: str, number: int) -> None:
        self._number = number
        self._pattern, self._partly = re.compile(pattern), regex.compile(pattern)

    @classmethod
    def of(cls, task: Task, filter_name: str) -> "Settled | None":
        """What is known of a task's filter; None where only the end of an answer settles it.

        Args:
            task: The task.
            filter_name: The filter by which it is scored.
        """
        pipe = next((pipe for pipe in task._filters if pipe.name == filter_name), None)
        first: Any = pipe.filters[0] if pipe is not None and pipe.filters else None
        made = first() if getattr(first, "func", first) is RegexFilter else None
        if made is None or not isinstance(made.group_select, int) or made.group_select < 0:
            return None
        parsed = importlib.import_module("re._parser").parse(made.regex_pattern)
        if any(name in LOOKS_FURTHER for name in operations(parsed)):
            return None
        try:
            return cls(made.regex_pattern, made.group_select)
        except regex.error:
            return None

    def __call__(self, text: str) -> bool:
        """True where the match is the same in every text that begins like this one.

        Args:
            text: The answer so far, without what a tokenizer or a stop text may still change.
        """
        found = [match.span() for match in self._pattern.finditer(text)]
        if len(found) <= self._number or found != [match.span() for match in self._partly.finditer(text)]:
            return False
        # A way to match that has not ended inside the text could go on behind it.
        starts = range(found[self._number][0] + 1)
        return all(self._partly.fullmatch(text, pos=start, partial=True) is None for start in starts)


def operations(parsed: Any) -> Iterator[str]:
    """The names of all operations of a parsed pattern, one inside another."""
    for part in parsed:
        if isinstance(part, tuple) and part and hasattr(part[0], "name"):
            yield str(part[0])
        if isinstance(part, tuple | list) or hasattr(part, "data"):
            yield from operations(part)
