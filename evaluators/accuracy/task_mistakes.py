"""Errors in tasks that name the document, where lm-eval or a processor raised an exception.

Such an error would stop every policy, so it ends the search as a mistake in the input.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from ...policies.errors import SkipsearchError, TaskError
from ...policies.wording import short

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.task import Task

    from ...policies.apply import PolicyHandle
    from .text_model import TextModel

# Exceptions that bad data causes in Python code; a device that fails raises RuntimeError instead.
DATA_ERRORS = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    OSError,
    ArithmeticError,
    AssertionError,
    ImportError,
)
HINT = "correct the document, or the task's functions and templates"


def task_error(task: str, doc: Any, doing: str, cause: BaseException, found: Any = None) -> TaskError:
    """The error for one document of a task.

    Args:
        task: The task's name.
        doc: The document's place in its data.
        doing: What could not be done.
        cause: The exception.
        found: The value that caused it, where it is known.
    """
    lines = str(cause).strip().splitlines()
    details = [f"document {doc}: {type(cause).__name__}: {short(lines[0])[1:-1] if lines else ''}"]
    details += [f"found {short(found)}"] if found is not None else []
    return TaskError(f"task {task}: {doing}", details, HINT)


@contextmanager
def naming_document(tasks: "Mapping[str, Task]", model: "TextModel", handle: "PolicyHandle | None") -> Iterator[None]:
    """Turn an exception while tasks are encoded or answered into an error that names the document.

    Args:
        tasks: The tasks, with their requests.
        model: The model that encodes and answers.
        handle: The policy that the model runs under.

    Raises:
        TaskError: a document cannot be encoded, or the dense model cannot answer it.
    """
    try:
        yield
    except SkipsearchError:
        raise
    except DATA_ERRORS as cause:
        error = first_faulty(tasks, model, handle)
        if error is None:
            raise  # The tasks are valid, so the policy, the model or skipsearch itself is at fault.
        raise error from cause


def first_faulty(tasks: "Mapping[str, Task]", model: "TextModel", handle: "PolicyHandle | None") -> TaskError | None:
    """The error for the first document whose prompt the dense model cannot process; None where all are processed."""
    with handle.dense() if handle is not None else nullcontext():
        for name, task in tasks.items():
            for request in task.instances:
                try:
                    run_prompt(request, model)
                except DATA_ERRORS as cause:
                    doing = "the model cannot process the prompt of a document"
                    return task_error(name, request.doc_id, doing, cause, prompt_text(request))
    return None


def run_prompt(request: "Instance", model: "TextModel") -> None:
    """Run the model on one prompt."""
    import torch

    inputs = model.encode_prompt(request.args)
    if not inputs["input_ids"].numel():
        return
    device, dtype = model.model.device, model.model.dtype
    placed = {key: value.to(device, dtype if value.is_floating_point() else None) for key, value in inputs.items()}
    with torch.no_grad():
        model.model(**placed, use_cache=False)


def prompt_text(request: "Instance") -> str:
    """The prompt of a request and the types of its images, for a message."""
    images = request.args[2].get("visual", []) if len(request.args) > 2 else []
    kinds = [type(image).__name__ if not isinstance(image, str | int) else repr(image) for image in images]
    return f"{request.args[0]!r:.80}" + (f" with the images {', '.join(kinds)}" if kinds else "")


def check_targets(task: "Task") -> None:
    """Check that the right answer of each document is one of its choices; lm-eval would count every answer as wrong.

    Raises:
        TaskError: the right answer of a document is none of its choices.
    """
    # Tasks written as Python classes may lack `config` and `multiple_input`.
    scores_itself = getattr(getattr(task, "config", None), "process_results", None) is not None
    if task.OUTPUT_TYPE != "multiple_choice" or scores_itself or getattr(task, "multiple_input", True):
        return
    for doc_id, doc in {request.doc_id: request.doc for request in task.instances}.items():
        target, choices = task.doc_to_target(doc), task.doc_to_choice(doc)
        for one in target if isinstance(target, list) else [target]:
            if isinstance(one, int) and not -len(choices) <= one < len(choices):
                cause = IndexError(f"found the choice {one}, expected 0 to {len(choices) - 1}")
                raise task_error(str(task.task_name), doc_id, "the right answer is none of the choices", cause, choices)
