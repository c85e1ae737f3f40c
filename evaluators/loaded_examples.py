"""Loaded tasks and lm-eval's view of a model, shared by all evaluators with the same options of examples.

They share prompts, tokens, image features and hidden states, and one evaluator's log-likelihoods of a policy serve the
others.
"""

from ..policies.runtime.prefix import PrefixStates
from .accuracy.memo import Memo
from .accuracy.model import lm_eval_model
from .accuracy.splits import Tasks, split_documents
from .accuracy.tasks import load_tasks, quiet, refuse_unusable, with_requests
from .base import Split
from .example_options import ExampleOptions
from .subject import Subject


class LoadedExamples:
    """The tasks of both splits, and the model that answers them.

    Args:
        options: The examples.
        subject: The loaded model.

    Attributes:
        memo: Cache of values that do not depend on the policy.
        states: Hidden states, for policies that share their first layers.
        model: lm-eval's view of the model.
        loaded: By split, the tasks by name.
        ranges: By split and task, the places of its documents in the data.
        split: The split that was measured last.

    Raises:
        EvaluatorError: a task does not load or cannot be used, or the splits share examples.
    """

    def __init__(self, options: ExampleOptions, subject: Subject) -> None:
        self._options = options
        self.memo = Memo(options.memory_bytes)
        self.states = PrefixStates(options.states_bytes)
        self.split: Split = "search"
        with quiet():
            self.model = lm_eval_model(subject, options.batch_size, self.memo, self.states)
        # Both splits are loaded at once: a mistake in the report's tasks should show before the search, not after it.
        names = {split: options.tasks_of(split) for split in ("search", "report")}
        search = load_tasks(names["search"], options.num_fewshot, options.seed)
        is_same = names["report"] == names["search"]
        report = search if is_same else load_tasks(names["report"], options.num_fewshot, options.seed)
        self.loaded: dict[str, Tasks] = {"search": search, "report": report}
        for task in (task for tasks in self.loaded.values() for task in tasks.values()):
            refuse_unusable(task, subject.is_multimodal)
        self.ranges = split_documents(search, report, options.search.limit, options.report.limit)
        self._with_requests: dict[str, Tasks] = {}

    @classmethod
    def of(cls, options: ExampleOptions, subject: Subject) -> "LoadedExamples":
        """The loaded examples of a subject for equal options; loads them if no evaluator has yet."""
        key = options.model_dump_json(include={*ExampleOptions.model_fields})
        found: LoadedExamples | None = subject.examples.get(key)
        if found is None:
            subject.examples[key] = found = cls(options, subject)
        return found

    def tasks(self, split: str) -> Tasks:
        """The tasks of a split with their requests, which are built on first use."""
        if split not in self._with_requests:
            options, ranges = self._options, self.ranges[split]
            self._with_requests[split] = {
                name: with_requests(task, ranges[name], self.model, options.apply_chat_template, options.seed)
                for name, task in self.loaded[split].items()
            }
        return self._with_requests[split]

    def begin(self, split: Split) -> None:
        """Drop the hidden states of the other split when a measurement begins: its batches do not come again."""
        if split != self.split:
            self.states.forget()
        self.split = split
