"""lm-eval's tasks: loading them, taking apart the examples for search and report, and scoring answers.

Prompts, filters, metrics and aggregations are lm-eval's own code; what is ours is that requests are built once and
answered by many policies.
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
from .model import TextModel
from .task_mistakes import OF_DATA, check_targets, mistake

PREFERRED = ("exact_match", "acc", "acc_norm")
# The others need a bootstrap, which lm-eval runs in a pool of processes; a worker has no cores for that.
STDERR: Mapping[Any, Callable[[Any], float]] = {mean: mean_stderr, acc_all: acc_all_stderr}


@dataclass(frozen=True)
class Score:
    """How well one task was answered.

    Attributes:
        metric: lm-eval's metric and filter, such as `exact_match,none`.
        value: The aggregated metric.
        stderr: Its standard error, where there is a closed form.
        items: The metric of each document, in order.
        divergences: How far the policy is from the dense model on each document, where that was measured beside.
    """

    metric: str
    value: float
    stderr: float | None
    items: list[Any]
    divergences: list[float] = field(default_factory=list)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep lm-eval's log and progress bars from the terminal; its errors are raised, not logged."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(before)


def seed_all(seed: int) -> None:
    """Seed as `simple_evaluate` does, which gives Python's own generator 0 and the others its seed."""
    random.seed(0)
    np.random.seed(seed)
    torch.manual_seed(seed)


@functools.cache
def task_manager(every_task: bool) -> TaskManager:
    """lm-eval's index of tasks; it takes seconds to read all of its own, which paths of tasks do not need."""
    return TaskManager(include_defaults=every_task)


def load_tasks(names: Sequence[str], num_fewshot: int | None, seed: int) -> dict[str, Task]:
    """Load tasks with their data.

    Args:
        names: Names that lm-eval knows (groups and tags too), or paths of YAML files.
        num_fewshot: Examples in the prompt; None leaves it to the task.
        seed: Picks those examples.

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
                # lm-eval lets a task that says 0 keep it, and takes nothing said for 0.
                if task.get_config("num_fewshot") is None or num_fewshot is not None:
                    keep = task.get_config("num_fewshot") == 0
                    task.set_config(key="num_fewshot", value=0 if keep else num_fewshot or 0)
        except (*OF_DATA, RuntimeError, yaml.YAMLError, jinja2.TemplateError) as cause:
            raise load_failure(names, cause) from cause
        except datasets.exceptions.DatasetsError as cause:
            raise load_failure(names, cause) from cause
    return tasks


def load_failure(names: Sequence[str], cause: BaseException) -> EvaluatorError:
    """Say why tasks did not load."""
    lines = f"{type(cause).__name__}: {cause}".strip().splitlines()[:4]
    if isinstance(cause, LookupError | TypeError | AttributeError | ArithmeticError | AssertionError):
        lines.append("lm-eval tries a task on document 0 when it loads it: see whether there is one, and what it holds")
    hint = "check the task's YAML, its dataset, the network and HF_DATASETS_OFFLINE"
    return EvaluatorError(f"cannot load the tasks {', '.join(names)}", lines, hint)


def check_exists(name: str, is_path: bool, manager: TaskManager) -> None:
    """Refuse a task that is not there.

    Raises:
        EvaluatorError: naming the nearest ones.
    """
    if is_path and not Path(name).is_file():
        raise EvaluatorError(f"task file {name} does not exist", hint="paths are relative to the space file")
    if not is_path and name not in manager.task_index:
        near = difflib.get_close_matches(name, manager.all_tasks, n=3)
        details = [f"the nearest known ones are {', '.join(near)}"] if near else []
        raise EvaluatorError(f"lm-eval knows no task '{name}'", details, "`lm-eval ls tasks` lists them")


def refuse_unusable(task: Task, takes_images: bool) -> None:
    """Refuse tasks whose answers would crash or mislead.

    Raises:
        EvaluatorError: and why.
    """
    reasons = {
        "runs code that the model writes, which skipsearch does not do": getattr(task, "UNSAFE_CODE", False),
        "has sound, which no evaluator takes": bool(task.get_config("doc_to_audio")),
        "has images, which this model does not take": getattr(task, "MULTIMODAL", False) and not takes_images,
        # lm-eval puts the text of the examples into the prompt, but not their images.
        "has images, so num_fewshot must be 0": getattr(task, "MULTIMODAL", False) and task.get_config("num_fewshot"),
    }
    found = [reason for reason, holds in reasons.items() if holds]
    if found:
        raise EvaluatorError(f"task {task.task_name} cannot be used", found)


def with_requests(task: Task, window: range, model: TextModel, apply_chat_template: bool, seed: int) -> Task:
    """A copy of a task that holds the requests of some documents.

    Raises:
        TaskError: the prompt of a document cannot be built.
    """
    task = copy.copy(task)
    docs, at_work = task.eval_docs, list(window[:1])
    places: dict[int, tuple[int, Any]] = {}  # by identity; the document is kept, so that no other one has the same

    def documents(**_: Any) -> Iterator[tuple[int, Any]]:
        """Only these are read and, where they have images, decoded; ids stay those of the whole data."""
        for index in window:
            at_work[0] = index
            doc = docs[index]
            places[id(doc)] = index, doc
            yield index, doc

    def noting(build: Callable[..., Any]) -> Callable[..., Any]:
        """Take note of which document a prompt is built from."""

        def built(doc: Any, *args: Any, **kwargs: Any) -> Any:
            at_work[0] = places[id(doc)][0] if id(doc) in places else at_work[0]
            return build(doc, *args, **kwargs)

        return built

    task.doc_iterator = documents
    task.fewshot_context, task.construct_requests = noting(task.fewshot_context), noting(task.construct_requests)
    # Templates are compiled anew at each use, which would be half of a trial's time with a small model.
    for name in ("doc_to_target", "doc_to_choice"):
        if hasattr(task, name):
            setattr(task, name, once(getattr(task, name)))
    with quiet():
        seed_all(seed)
        task.set_fewshot_seed(seed)
        try:
            task.build_all_requests(
                apply_chat_template=apply_chat_template,
                chat_template=model.apply_chat_template if apply_chat_template else None,
                tokenizer_name=model.tokenizer_name if apply_chat_template else "",
            )
        except (*OF_DATA, RuntimeError, jinja2.TemplateError) as cause:
            doing = "the prompt of a document cannot be built"
            raise mistake(str(task.task_name), at_work[0], doing, cause) from cause
    check_targets(task)
    return task


def once(function: Callable[..., Any]) -> Callable[..., Any]:
    """Remember what a function makes of each document."""
    kept: dict[Any, tuple[Any, Any]] = {}

    def remembering(doc: Any, *args: Any) -> Any:
        key = (id(doc), *map(repr, args))
        if key not in kept:
            kept[key] = (function(doc, *args), doc)
        return copy.copy(kept[key][0])

    return remembering


def pick_metric(task: Task, wanted: str | None) -> tuple[str, str]:
    """The metric and the filter of a task that count as its accuracy.

    Args:
        task: The task.
        wanted: `metric` or `metric,filter`; None picks the first of PREFERRED, else the first that should be high.

    Raises:
        EvaluatorError: the task has no such metric or filter, or a lower value would be better.
    """
    known, higher = list(task.aggregation()), task.higher_is_better()
    filters = [entry["name"] for entry in task.get_config("filter_list") or []] or ["none"]
    usable = [name for name in known if higher.get(name)]
    name, _, chosen = (wanted or "").partition(",")
    name = name or next((preferred for preferred in (*PREFERRED, *usable) if preferred in usable), "")
    if name not in usable:
        which = f"metric '{wanted}'" if wanted else "metric"
        details = [f"known: {', '.join(known)}"]
        raise EvaluatorError(f"task {task.task_name} has no {which} of which more is better", details)
    if chosen and chosen not in filters:
        raise EvaluatorError(f"task {task.task_name} has no filter '{chosen}'", [f"known: {', '.join(filters)}"])
    return name, chosen or filters[0]


def answer(tasks: Sequence[Task], model: TextModel) -> None:
    """Run the requests of all tasks, kind by kind and all tasks together as lm-eval does, and filter the answers."""
    by_kind: dict[str, list[Instance]] = defaultdict(list)
    for task in tasks:
        for request in task.instances:
            # What an earlier policy answered would be scored again otherwise.
            request.resps, request.filtered_resps = [], {}
            by_kind[request.request_type].extend([request] * request.repeats)
    for kind, requests in by_kind.items():
        run = model.log_likelihoods if kind == "loglikelihood" else getattr(model, kind)
        for request, response in zip(requests, run(requests, disable_tqdm=True), strict=True):
            request.resps.append(response)
    for task in tasks:
        task.apply_filters()


def items_of(task: Task, metric: str, chosen: str) -> dict[Any, Any]:
    """What each document scores by the answers that a task's requests hold; one without a score is left out.

    Raises:
        TaskError: the answer to a document cannot be scored.
    """
    by_doc: dict[Any, list[Instance]] = defaultdict(list)
    for request in task.instances:
        by_doc[request.doc_id].append(request)
    items = {}
    for doc, requests in by_doc.items():
        requests.sort(key=lambda request: request.idx)
        try:
            results = task.process_results(requests[0].doc, [request.filtered_resps[chosen] for request in requests])
        except (*OF_DATA, RuntimeError, jinja2.TemplateError) as cause:
            given = [request.filtered_resps[chosen] for request in requests]
            doing = "the answer to a document cannot be scored"
            raise mistake(str(task.task_name), doc, doing, cause, given) from cause
        if metric in results:
            items[doc] = results[metric]
    return items


def aggregated(task: Task, metric: str, chosen: str, items: Sequence[Any]) -> Score:
    """The figure of a task from the scores of its documents, in their order.

    Raises:
        EvaluatorError: the task does not give the metric after all, or it is no fraction.
    """
    aggregate = task.aggregation()[metric]
    value = float(aggregate(items)) if items else math.nan
    if not 0 <= value <= 1:
        hint = "name another one under accuracy.metric"
        found = f"found {value:g}, expected a fraction between 0 and 1"
        raise EvaluatorError(f"the metric {metric} of task {task.task_name} is no accuracy", [found], hint)
    stderr = STDERR[aggregate](items) if aggregate in STDERR and len(items) > 1 else None
    return Score(f"{metric},{chosen}", value, None if stderr is None else float(stderr), list(items))


def mean_score(metric: str, items: Sequence[float], divergences: Sequence[float] = ()) -> Score:
    """The figure of a task that is a plain mean over its documents."""
    stderr = statistics.stdev(items) / len(items) ** 0.5 if len(items) > 1 else None
    return Score(metric, statistics.fmean(items), stderr, list(items), list(divergences))
