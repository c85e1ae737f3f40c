"""The documents of the search and the report split, which never overlap."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from lm_eval.api.task import Task

from ...policies.errors import EvaluatorError

Tasks = Mapping[str, Task]
DocumentRanges = dict[str, range]


def split_documents(
    search: Tasks, report: Tasks, search_limit: int | None, report_limit: int | None
) -> dict[str, DocumentRanges]:
    """Assign documents to each task of each split.

    Where both splits use the same data, even with other prompts, the search takes the first documents and the report
    those after them.

    Args:
        search: The tasks of the search, by name.
        report: The tasks of the report, by name; the same objects or others.
        search_limit: Documents of each task. None takes all, or the first half of data that the report uses too.
        report_limit: Documents of each task. None takes all that the search leaves.

    Returns:
        By split and task, the places of its documents in the data.

    Raises:
        EvaluatorError: there are too few documents, or an example is in both splits.
    """
    reported = {documents_of(task) for task in report.values()}
    ranges: dict[str, DocumentRanges] = {"search": {}, "report": {}}
    taken: dict[tuple[str, ...], int] = {}
    for name, task in search.items():
        documents, count = documents_of(task), len(task.eval_docs)
        whole = count // 2 if documents in reported else count
        stop = whole if search_limit is None else search_limit
        ranges["search"][name] = check_range(name, range(stop), count, "the search")
        taken[documents] = max(taken.get(documents, 0), stop)
    for name, task in report.items():
        start, count = taken.get(documents_of(task), 0), len(task.eval_docs)
        stop = count if report_limit is None else start + report_limit
        ranges["report"][name] = check_range(name, range(start, stop), count, "the report")
    hint = "give the report data of its own, or the same `process_docs` as the search"
    refuse_common_examples(search, report, ranges, hint)
    return ranges


def check_range(name: str, places: range, count: int, split: str) -> range:
    """Check that a task has enough documents.

    Args:
        name: The task.
        places: The places of the wanted documents.
        count: The number of its documents.
        split: The split, for the message.

    Returns:
        The places.

    Raises:
        EvaluatorError: the task has too few documents.
    """
    if places and places.stop <= count:
        return places
    wanted = f"{split} wants {max(len(places), 1)} after the first {places.start}"
    hint = "lower accuracy.search.limit or accuracy.report.limit, or give the report tasks of its own"
    raise EvaluatorError(f"task {name} has too few documents", [f"found {count}, {wanted}"], hint)


def data_of(task: Task) -> tuple[str, ...]:
    """A key that is equal for tasks that read the same data, before their own processing."""
    split = task.get_config("test_split") or task.get_config("validation_split")
    values = (task.get_config(key) for key in ("dataset_path", "dataset_name", "dataset_kwargs", "custom_dataset"))
    return (str(split), *map(identity, values))


def documents_of(task: Task) -> tuple[str, ...]:
    """A key that is equal for tasks with the same documents in the same order, whatever their prompts."""
    return (*data_of(task), identity(task.get_config("process_docs")))


def identity(value: Any) -> str:
    """A value as text; a function by its place in the source, because lm-eval may import one file twice."""
    code = getattr(value, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else str(value)


def refuse_common_examples(
    search: Tasks, report: Tasks, ranges: Mapping[str, DocumentRanges], hint: str, split: str = "report"
) -> None:
    """Refuse splits that share examples.

    Compares places of documents, or their contents where two tasks process the same data differently.

    Args:
        search: The tasks of the search, by name.
        report: The tasks of the report, by name.
        ranges: By split and task, the places of its documents.
        hint: The hint of the error.
        split: The split of the second tasks.

    Raises:
        EvaluatorError: an example is in both splits.
    """
    for search_name, one in search.items():
        for report_name, other in report.items():
            if data_of(one) != data_of(other):
                continue
            places, others = ranges["search"][search_name], ranges[split][report_name]
            if documents_of(one) == documents_of(other):
                common = len({*places} & {*others})
            else:
                common = len(contents(one, places) & contents(other, others))
            if common:
                found = f"found {common} examples in both, expected none"
                names = f"{search_name} (search) and {report_name} ({split})"
                raise EvaluatorError(f"tasks {names} overlap", [found], hint)


def contents(task: Task, places: range) -> set[bytes]:
    """The hashes of some documents."""
    docs = task.eval_docs
    return {hash_of(docs[index]) for index in places}


def hash_of(document: Mapping[str, Any]) -> bytes:
    """A hash of a document's fields; images by their pixels."""
    digest = hashlib.blake2b()
    for key, value in sorted(document.items()):
        pixels: Callable[[], bytes] | None = getattr(value, "tobytes", None)
        digest.update(repr(key).encode() + (pixels() if pixels else repr(value).encode()))
    return digest.digest()
