"""What is wrong with a task, told with the document it is wrong in, where lm-eval or a processor raised over it.

Such a mistake is no policy's: it would stop every one of them, so it ends the search as a wrong input.
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
    from .model import TextModel

# What data that is not as it must be makes Python code raise. A device that fails raises RuntimeError.
OF_DATA = (ValueError, TypeError, LookupError, AttributeError, OSError, ArithmeticError, AssertionError, ImportError)
HINT = "mend the document, or the task's functions and templates"


def mistake(task: str, doc: Any, doing: str, cause: BaseException, found: Any = None) -> TaskError:
    """The error for one document.

    Args:
        task: The task's name.
        doc: The document's place in its data.
        doing: What could not be done.
        cause: What was raised.
        found: What it was raised over, as far as that is known.
    """
    lines = str(cause).strip().splitlines()
    details = [f"document {doc}: {type(cause).__name__}: {short(lines[0])[1:-1] if lines else ''}"]
    details += [f"found {short(found)}"] if found is not None else []
    return TaskError(f"task {task}: {doing}", details, HINT)


@contextmanager
def told_by_document(tasks: "Mapping[str, Task]", model: "TextModel", handle: "PolicyHandle | None") -> Iterator[None]:
    """Look for the document that is to blame where something is raised while tasks are encoded or answered.

    Args:
        tasks: The tasks, with their requests.
        model: What encodes and answers.
        handle: The policy that the model runs under.

    Raises:
        TaskError: a document cannot be encoded, or not even be answered by the dense model.
    """
    try:
        yield
    except SkipsearchError:
        raise
    except OF_DATA as cause:
        found = faulty(tasks, model, handle)
        if found is None:
            raise  # The tasks are sound: it is the policy, the model or a bug of ours.
        raise found from cause


def faulty(tasks: "Mapping[str, Task]", model: "TextModel", handle: "PolicyHandle | None") -> TaskError | None:
    """The first document whose prompt the dense model cannot be given."""
    with handle.dense() if handle is not None else nullcontext():
        for name, task in tasks.items():
            for request in task.instances:
                try:
                    run(request, model)
                except OF_DATA as cause:
                    doing = "the model cannot be given the prompt of a document"
                    return mistake(name, request.doc_id, doing, cause, prompt_of(request))
    return None


def run(request: "Instance", model: "TextModel") -> None:
    """Give the model one prompt."""
    import torch

    inputs = model.encode_prompt(request.args)
    if not inputs["input_ids"].numel():
        return
    device, dtype = model.model.device, model.model.dtype
    placed = {key: value.to(device, dtype if value.is_floating_point() else None) for key, value in inputs.items()}
    with torch.no_grad():
        model.model(**placed, use_cache=False)


def prompt_of(request: "Instance") -> str:
    """The prompt of a request, and its images where it has any."""
    images = request.args[2].get("visual", []) if len(request.args) > 2 else []
    kinds = [type(image).__name__ if not isinstance(image, str | int) else repr(image) for image in images]
    return f"{request.args[0]!r:.80}" + (f" with the images {', '.join(kinds)}" if kinds else "")


def check_targets(task: "Task") -> None:
    """See that the right answer of each document is one of its choices; lm-eval would count it as answered wrongly.

    Raises:
        TaskError: one is not.
    """
    # A task that is a class of its own has neither of the two.
    scores_itself = getattr(getattr(task, "config", None), "process_results", None) is not None
    if task.OUTPUT_TYPE != "multiple_choice" or scores_itself or getattr(task, "multiple_input", True):
        return
    for doc_id, doc in {request.doc_id: request.doc for request in task.instances}.items():
        target, choices = task.doc_to_target(doc), task.doc_to_choice(doc)
        for one in target if isinstance(target, list) else [target]:
            if isinstance(one, int) and not -len(choices) <= one < len(choices):
                cause = IndexError(f"found the choice {one}, expected 0 to {len(choices) - 1}")
                raise mistake(str(task.task_name), doc_id, "the right answer is none of the choices", cause, choices)
