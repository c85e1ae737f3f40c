"""Which documents guide a search and which are reported: never the same."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from lm_eval.api.task import Task

from ...policies.errors import EvaluatorError

Tasks = Mapping[str, Task]
Windows = dict[str, range]


def divide(search: Tasks, report: Tasks, search_limit: int | None, report_limit: int | None) -> dict[str, Windows]:
    """Give each task of each split its documents.

    Where both splits use the same data, whatever their prompts, the search takes the first documents and the report
    those after them.

    Args:
        search: The tasks of the search, by name.
        report: The tasks of the report, by name; the same objects or others.
        search_limit: Documents of each task. None takes all, or the first half of data that the report uses too.
        report_limit: Documents of each task. None takes all that the search leaves.

    Returns:
        By split and task, the places of its documents.

    Raises:
        EvaluatorError: there are too few documents, or an example turns up in both splits all the same.
    """
    reported = {documents_of(task) for task in report.values()}
    windows: dict[str, Windows] = {"search": {}, "report": {}}
    taken: dict[tuple[str, ...], int] = {}
    for name, task in search.items():
        whose, count = documents_of(task), len(task.eval_docs)
        whole = count // 2 if whose in reported else count
        stop = whole if search_limit is None else search_limit
        windows["search"][name] = checked(name, range(stop), count, "the search")
        taken[whose] = max(taken.get(whose, 0), stop)
    for name, task in report.items():
        start, count = taken.get(documents_of(task), 0), len(task.eval_docs)
        stop = count if report_limit is None else start + report_limit
        windows["report"][name] = checked(name, range(start, stop), count, "the report")
    hint = "give the report data of its own, or the same `process_docs` as the search"
    refuse_common_examples(search, report, windows, hint)
    return windows


def checked(name: str, window: range, count: int, who: str) -> range:
    """The window, if the task has so many documents.

    Raises:
        EvaluatorError: it has not.
    """
    if window and window.stop <= count:
        return window
    wanted = f"{who} wants {max(len(window), 1)} after the first {window.start}"
    hint = "lower accuracy.search.limit or accuracy.report.limit, or give the report tasks of its own"
    raise EvaluatorError(f"task {name} has too few documents", [f"found {count}, {wanted}"], hint)


def data_of(task: Task) -> tuple[str, ...]:
    """Equal for tasks that read the same rows, before any processing of their own."""
    split = task.get_config("test_split") or task.get_config("validation_split")
    values = (task.get_config(key) for key in ("dataset_path", "dataset_name", "dataset_kwargs", "custom_dataset"))
    return (str(split), *map(place, values))


def documents_of(task: Task) -> tuple[str, ...]:
    """Equal for tasks that have the same documents in the same order, whatever their prompts."""
    return (*data_of(task), place(task.get_config("process_docs")))


def place(value: Any) -> str:
    """Text of a value; of a function where it is written, for lm-eval may import one file twice."""
    code = getattr(value, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else str(value)


def refuse_common_examples(search: Tasks, report: Tasks, windows: Mapping[str, Windows], hint: str) -> None:
    """Compare examples: by their places, or one by one where two tasks pick them from the same data in different ways.

    Args:
        search: The tasks of the search, by name.
        report: The tasks of the report.
        windows: By split and task, the places of its documents.
        hint: What to do about it.

    Raises:
        EvaluatorError: some example is in both splits.
    """
    for searching, one in search.items():
        for reporting, other in report.items():
            if data_of(one) != data_of(other):
                continue
            places, others = windows["search"][searching], windows["report"][reporting]
            if documents_of(one) == documents_of(other):
                common = len({*places} & {*others})
            else:
                common = len(contents(one, places) & contents(other, others))
            if common:
                found = f"found {common} examples in both, expected none"
                raise EvaluatorError(f"tasks {searching} (search) and {reporting} (report) overlap", [found], hint)


def contents(task: Task, window: range) -> set[bytes]:
    """A hash of each document."""
    docs = task.eval_docs
    return {hash_of(docs[index]) for index in window}


def hash_of(document: Mapping[str, Any]) -> bytes:
    """A hash of a document's fields, pictures by their pixels."""
    digest = hashlib.blake2b()
    for key, value in sorted(document.items()):
        pixels: Callable[[], bytes] | None = getattr(value, "tobytes", None)
        digest.update(repr(key).encode() + (pixels() if pixels else repr(value).encode()))
    return digest.digest()
