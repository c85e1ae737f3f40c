"""The exceptions of skipsearch.

SkipsearchError
├── DocumentError        a YAML file that cannot be read or does not validate
│   ├── SpaceError
│   └── PolicyError
│       └── PolicyMismatch   a valid policy that does not fit the model
├── ModelError           a model that cannot be loaded, or has no layers that can be wrapped
├── EvaluatorError       an evaluator that is unknown, misconfigured or cannot measure
│   └── TaskError            a mistake in a task, which stops every policy alike
├── StudyError           a study that cannot be opened, resumed or reported
├── HubError             a folder or repository that holds no policy, or cannot be read or written
├── LoggerError          a logger of a search whose package is not installed
├── ExportError          a policy that a target cannot represent, or an export that another tool does not load
│   └── ProofError           an export that computes something else than the model under the policy
├── RunError             a search that started and cannot go on
├── TrainingDataError    training data with mistakes, each with its line
└── UsageError           a command line that names something that does not exist
"""

from collections.abc import Sequence


class SkipsearchError(Exception):
    """Base of errors that a user can correct; the command line prints their parts one below the other.

    Args:
        what: What is wrong, in one line, lower case and without a full stop.
        details: Where it is, and what was found against what is expected; one line each.
        hint: One action that solves it.
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
        """Pickle all three parts, so that they survive a process boundary."""
        return type(self), (self.what, self.details, self.hint)


class DocumentError(SkipsearchError):
    """A YAML file cannot be read or does not validate."""


class SpaceError(DocumentError):
    """A search space is invalid."""


class PolicyError(DocumentError):
    """A policy is invalid, or cannot be applied."""


class PolicyMismatch(PolicyError):
    """A valid policy does not fit the model."""


class ModelError(SkipsearchError):
    """A model cannot be loaded, or its layers cannot be wrapped."""


class EvaluatorError(SkipsearchError):
    """An evaluator is unknown, misconfigured or cannot measure."""


class TaskError(EvaluatorError):
    """A task has a mistake: in its data, its prompts or its functions."""


class StudyError(SkipsearchError):
    """A study cannot be opened, resumed or reported."""


class HubError(SkipsearchError):
    """A folder or a repository of the hub holds no policy, or cannot be read or written."""


class ExportError(SkipsearchError):
    """A target cannot represent a policy, or its tool does not load the export."""


class ProofError(ExportError):
    """An export computes something else than the model under the policy."""


class LoggerError(SkipsearchError):
    """A logger that a space names cannot be used."""


class RunError(SkipsearchError):
    """A search started and cannot go on; its measurements are kept."""


class TrainingDataError(SkipsearchError):
    """Training data has mistakes; the details list all of them, by line."""


class UsageError(SkipsearchError):
    """The command line names something that does not exist."""
