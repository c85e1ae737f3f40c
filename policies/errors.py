"""The exceptions of skipsearch.

SkipsearchError
├── DocumentError        a YAML file that cannot be read or does not validate
│   ├── SpaceError
│   └── PolicyError
│       └── PolicyMismatch   a sound policy, but not for this model
├── ModelError           a model that cannot be loaded, or has no layers we can wrap
├── EvaluatorError       an evaluator that is unknown, misconfigured or cannot measure
│   └── TaskError            a task's own mistake, which no policy would mend
├── StudyError           a study that cannot be opened, resumed or reported
├── RunError             a search that began and cannot go on
└── UsageError           a command line that asks for what does not exist
"""

from collections.abc import Sequence


class SkipsearchError(Exception):
    """A mistake the user can mend, told in parts that the command line lays out.

    Args:
        what: What is wrong, in one line, lower case and without a full stop.
        details: Where, and found against expected; one line each.
        hint: One action that works.
    """

    def __init__(self, what: str, details: Sequence[str] = (), hint: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.details = tuple(details)
        self.hint = hint

    def __str__(self) -> str:
        lines = [self.what, *(f"  {line}" for line in self.details)]
        if self.hint:
            lines.append(f"hint: {self.hint}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[type, tuple[str, tuple[str, ...], str | None]]:
        """Keep all three parts when the exception crosses a process boundary."""
        return type(self), (self.what, self.details, self.hint)


class DocumentError(SkipsearchError):
    """A YAML file cannot be read or does not validate."""


class SpaceError(DocumentError):
    """A search space is wrong."""


class PolicyError(DocumentError):
    """A policy is wrong."""


class PolicyMismatch(PolicyError):
    """A policy was made for another model."""


class ModelError(SkipsearchError):
    """A model cannot be loaded, or its layers cannot be wrapped."""


class EvaluatorError(SkipsearchError):
    """An evaluator is unknown, misconfigured or cannot measure."""


class TaskError(EvaluatorError):
    """A task has a mistake: in its data, its prompts or its functions."""


class StudyError(SkipsearchError):
    """A study cannot be opened, resumed or reported."""


class RunError(SkipsearchError):
    """A search began and cannot go on; what it measured is kept."""


class UsageError(SkipsearchError):
    """The command line asks for what does not exist."""
