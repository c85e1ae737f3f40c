"""lm-eval's tasks: loading them, building their requests for some documents, and scoring answers.

Prompts, filters, metrics and aggregations are lm-eval's own code. Requests are built once and answered under many
policies.
"""

import copy
import difflib
import functools
import io
import logging
import math
import random
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import jinja2
import numpy as np
import torch
import yaml
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import acc_all, acc_all_stderr, mean, mean_stderr
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager

from ...policies.errors import EvaluatorError
from .task_mistakes import DATA_ERRORS, check_targets, task_error
from .text_model import TextModel

PREFERRED_METRICS = ("exact_match", "acc", "acc_norm")
# Standard errors in closed form. Other aggregations need a bootstrap, which lm-eval runs in a pool of processes, and a
# worker has no cores for that.
STDERR_OF: Mapping[Any, Callable[[Any], float]] = {mean: mean_stderr, acc_all: acc_all_stderr}


@dataclass(frozen=True)
class Score:
    """The result of one task.

    Attributes:
        metric: lm-eval's metric and filter, such as `exact_match,none`.
        value: The aggregated metric.
        stderr: Its standard error, where there is a closed form.
        items: The metric of each document, in order.
        divergences: The divergence from the dense model on each document, where it was measured too.
    """

    metric: str
    value: float
    stderr: float | None
    items: list[Any]
    divergences: list[float] = field(default_factory=list)


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress lm-eval's log and progress bars; its errors are raised, not logged."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(before)


def seed_all(seed: int) -> None:
    """Seed all random generators as `simple_evaluate` does: Python's with 0, NumPy's and torch's with `seed`."""
    random.seed(0)
    np.random.seed(seed)
    torch.manual_seed(seed)


@functools.cache
def task_manager(every_task: bool) -> TaskManager:
    """lm-eval's index of tasks; indexing lm-eval's own tasks takes seconds, so task files go without."""
    return TaskManager(include_defaults=every_task)


def load_tasks(names: Sequence[str], num_fewshot: int | None, seed: int) -> dict[str, Task]:
    """Load tasks with their data.

    Args:
        names: lm-eval's names of tasks, groups or tags, or paths of YAML files.
        num_fewshot: Number of examples in the prompt; None leaves it to the task.
        seed: The seed that picks these examples.

    Raises:
        EvaluatorError: a task is unknown, malformed or without data.
    """
    is_path = {name: name.endswith((".yaml", ".yml")) for name in names}
    with quiet():
        manager = task_manager(every_task=not all(is_path.values()))
        for name in names:
            check_exists(name, is_path[name], manager)
        seed_all(seed)
        try:
            tasks: dict[str, Task] = manager.load(list(names))["tasks"]
            for task in tasks.values():
                # As in lm-eval: a task that sets 0 keeps it, and a task that sets nothing has 0.
                if task.get_config("num_fewshot") is None or num_fewshot is not None:
                    keep = task.get_config("num_fewshot") == 0
                    task.set_config(key="num_fewshot", value=0 if keep else num_fewshot or 0)
        except (*DATA_ERRORS, RuntimeError, yaml.YAMLError, jinja2.TemplateError) as cause:
            raise load_failure(names, cause) from cause
        except datasets.exceptions.DatasetsError as cause:
            raise load_failure(names, cause) from cause
    return tasks


def load_failure(names: Sequence[str], cause: BaseException) -> EvaluatorError:
    """The error for tasks that did not load."""
    lines = f"{type(cause).__name__}: {cause}".strip().splitlines()[:4]
    if isinstance(cause, LookupError | TypeError | AttributeError | ArithmeticError | AssertionError):
        lines.append("lm-eval builds document 0 when it loads a task: check that the data has one, and its fields")
    hint = "check the task's YAML, its dataset, the network and HF_DATASETS_OFFLINE"
    return EvaluatorError(f"cannot load the tasks {', '.join(names)}", lines, hint)


def check_exists(name: str, is_path: bool, manager: TaskManager) -> None:
    """Refuse a task that does not exist.

    Raises:
        EvaluatorError: naming the most similar tasks.
    """
    if is_path and not Path(name).is_file():
        raise EvaluatorError(f"task file {name} does not exist", hint="paths are relative to the space file")
    if not is_path and name not in manager.task_index:
        near = difflib.get_close_matches(name, manager.all_tasks, n=3)
        details = [f"the nearest known ones are {', '.join(near)}"] if near else []
        raise EvaluatorError(f"lm-eval has no task '{name}'", details, "`lm-eval ls tasks` lists them")


def refuse_unusable(task: Task, takes_images: bool) -> None:
    """Refuse a task that cannot run, or whose results would be wrong.

    Raises:
        EvaluatorError: naming the reason.
    """
    reasons = {
        "runs code that the model writes, which skipsearch does not do": getattr(task, "UNSAFE_CODE", False),
        "has sound, which no evaluator takes": bool(task.get_config("doc_to_audio")),
        "has images, which this model does not take": getattr(task, "MULTIMODAL", False) and not takes_images,
        # lm-eval puts the text of few-shot examples into the prompt, but not their images.
        "has images, so num_fewshot must be 0": getattr(task, "MULTIMODAL", False) and task.get_config("num_fewshot"),
    }
    holding = [reason for reason, holds in reasons.items() if holds]
    if holding:
        raise EvaluatorError(f"task {task.task_name} cannot be used", holding)


def with_requests(task: Task, places: range, model: TextModel, apply_chat_template: bool, seed: int) -> Task:
    """A copy of a task with the requests of some documents.

    Args:
        task: The task.
        places: The places of the documents in its data.
        model: The model, for its tokenizer.
        apply_chat_template: Whether prompts use the model's chat template.
        seed: The seed that picks few-shot examples.

    Raises:
        TaskError: the prompt of a document cannot be built.
    """
    task = copy.copy(task)
    docs, current = task.eval_docs, list(places[:1])
    # By `id`; the document is kept alive, so that no other one gets the same id.
    by_id: dict[int, tuple[int, Any]] = {}

    def documents(**_: Any) -> Iterator[tuple[int, Any]]:
        """Read, and decode the images of, these documents only; their ids are those of the whole data."""
        for index in places:
            current[0] = index
            doc = docs[index]
            by_id[id(doc)] = index, doc
            yield index, doc

    def tracked(build: Callable[..., Any]) -> Callable[..., Any]:
        """Keep track of the document that a prompt is built from, for the error message."""

        def build_tracked(doc: Any, *args: Any, **kwargs: Any) -> Any:
            current[0] = by_id[id(doc)][0] if id(doc) in by_id else current[0]
            return build(doc, *args, **kwargs)

        return build_tracked

    task.doc_iterator = documents
    task.fewshot_context, task.construct_requests = tracked(task.fewshot_context), tracked(task.construct_requests)
    # lm-eval compiles templates again at each use, which takes half of a trial's time with a small model.
    for name in ("doc_to_target", "doc_to_choice"):
        if hasattr(task, name):
            setattr(task, name, cached_by_document(getattr(task, name)))
    with quiet():
        seed_all(seed)
        task.set_fewshot_seed(seed)
        try:
            task.build_all_requests(
                apply_chat_template=apply_chat_template,
                chat_template=model.apply_chat_template if apply_chat_template else None,
                tokenizer_name=model.tokenizer_name if apply_chat_template else "",
            )
        except (*DATA_ERRORS, RuntimeError, jinja2.TemplateError) as cause:
            doing = "the prompt of a document cannot be built"
            raise task_error(str(task.task_name), current[0], doing, cause) from cause
    check_targets(task)
    return task


def cached_by_document(function: Callable[..., Any]) -> Callable[..., Any]:
    """Cache the results of a function of a document."""
    cache: dict[Any, tuple[Any, Any]] = {}

    def cached(doc: Any, *args: Any) -> Any:
        key = (id(doc), *map(repr, args))
        if key not in cache:
            # The document is kept alive, so that no other one gets the same id.
            cache[key] = (function(doc, *args), doc)
        return copy.copy(cache[key][0])

    return cached


def pick_metric(task: Task, wanted: str | None) -> tuple[str, str]:
    """The metric and the filter of a task that count as its accuracy.

    Args:
        task: The task.
        wanted: `metric` or `metric,filter`; None picks the first of PREFERRED_METRICS, else the first metric of which
            higher is better.

    Raises:
        EvaluatorError: the task has no such metric or filter, or lower values of the metric are better.
    """
    known, higher = list(task.aggregation()), task.higher_is_better()
    filters = [entry["name"] for entry in task.get_config("filter_list") or []] or ["none"]
    usable = [name for name in known if higher.get(name)]
    name, _, chosen = (wanted or "").partition(",")
    name = name or next((preferred for preferred in (*PREFERRED_METRICS, *usable) if preferred in usable), "")
    if name not in usable:
        which = f"metric '{wanted}'" if wanted else "metric"
        details = [f"known: {', '.join(known)}"]
        raise EvaluatorError(f"task {task.task_name} has no {which} of which higher is better", details)
    if chosen and chosen not in filters:
        raise EvaluatorError(f"task {task.task_name} has no filter '{chosen}'", [f"known: {', '.join(filters)}"])
    return name, chosen or filters[0]


def answer_requests(tasks: Sequence[Task], model: TextModel) -> None:
    """Run the requests of all tasks and filter the answers; as in lm-eval, all tasks together, one type at a time."""
    by_type: dict[str, list[Instance]] = defaultdict(list)
    for task in tasks:
        for request in task.instances:
            # Otherwise the answers of an earlier policy would be scored again.
            request.resps, request.filtered_resps = [], {}
            by_type[request.request_type].extend([request] * request.repeats)
    for request_type, requests in by_type.items():
        run = model.log_likelihoods if request_type == "loglikelihood" else getattr(model, request_type)
        for request, response in zip(requests, run(requests, disable_tqdm=True), strict=True):
            request.resps.append(response)
    for task in tasks:
        task.apply_filters()


def score_documents(task: Task, metric: str, filter_name: str) -> dict[Any, Any]:
    """The score of each document by the answers in a task's requests; a document without a score is left out.

    Raises:
        TaskError: the answer to a document cannot be scored.
    """
    found = document_results(task, filter_name)
    return {doc: results[metric] for doc, results in found.items() if metric in results}


def document_results(task: Task, filter_name: str) -> dict[Any, dict[str, Any]]:
    """All metrics of each document by the answers in a task's requests, before their aggregation.

    Raises:
        TaskError: the answer to a document cannot be scored.
    """
    by_doc: dict[Any, list[Instance]] = defaultdict(list)
    for request in task.instances:
        by_doc[request.doc_id].append(request)
    found = {}
    for doc, requests in by_doc.items():
        requests.sort(key=lambda request: request.idx)
        try:
            found[doc] = task.process_results(
                requests[0].doc, [request.filtered_resps[filter_name] for request in requests]
            )
        except (*DATA_ERRORS, RuntimeError, jinja2.TemplateError) as cause:
            given = [request.filtered_resps[filter_name] for request in requests]
            doing = "the answer to a document cannot be scored"
            raise task_error(str(task.task_name), doc, doing, cause, given) from cause
    return found


def aggregate(task: Task, metric: str, filter_name: str, items: Sequence[Any]) -> Score:
    """Aggregate the scores of a task's documents, in their order.

    Raises:
        EvaluatorError: no document has a score, or the result is no fraction.
    """
    aggregation = task.aggregation()[metric]
    value = float(aggregation(items)) if items else math.nan
    if not 0 <= value <= 1:
        hint = "set another one under accuracy.metric"
        found = f"found {value:g}, expected a fraction between 0 and 1"
        raise EvaluatorError(f"the metric {metric} of task {task.task_name} is no accuracy", [found], hint)
    stderr = STDERR_OF[aggregation](items) if aggregation in STDERR_OF and len(items) > 1 else None
    return Score(f"{metric},{filter_name}", value, None if stderr is None else float(stderr), list(items))


def mean_score(metric: str, items: Sequence[float], divergences: Sequence[float] = ()) -> Score:
    """The result of a task as the plain mean over its documents."""
    stderr = statistics.stdev(items) / len(items) ** 0.5 if len(items) > 1 else None
    return Score(metric, statistics.fmean(items), stderr, list(items), list(divergences))
