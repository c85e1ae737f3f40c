"""Examples that are loaded for a model, with lm-eval's view of that model: made once for evaluators that agree on them.

Evaluators with the same options of examples share tasks, prompts, tokens, image features and hidden states, and what
one of them computes for a policy is there for the next.
"""

from ..policies.runtime.prefix import PrefixStates
from .accuracy.memo import Memo
from .accuracy.model import live_model
from .accuracy.splits import Tasks, divide
from .accuracy.tasks import load_tasks, quiet, refuse_unusable, with_requests
from .base import Split
from .example_options import ExampleOptions
from .subject import Subject


class LoadedExamples:
    """The tasks of both splits, and the model that answers them.

    Args:
        options: Which examples.
        subject: The loaded model.

    Attributes:
        memo: What does not depend on the policy.
        states: Hidden states, for policies that begin alike.
        model: lm-eval's view of the model.
        loaded: By split, the tasks by name.
        windows: By split and task, the places of its documents.
        split: The split that was measured last.

    Raises:
        EvaluatorError: a task does not load or cannot be used, or the splits have examples in common.
    """

    def __init__(self, options: ExampleOptions, subject: Subject) -> None:
        self._options = options
        self.memo = Memo(options.memory_bytes)
        self.states = PrefixStates(options.states_bytes)
        self.split: Split = "search"
        with quiet():
            self.model = live_model(subject, options.batch_size, self.memo, self.states)
        # Both splits are loaded at once: what is wrong with the report should show before the search, not after.
        names = {split: options.tasks_of(split) for split in ("search", "report")}
        search = load_tasks(names["search"], options.num_fewshot, options.seed)
        is_same = names["report"] == names["search"]
        report = search if is_same else load_tasks(names["report"], options.num_fewshot, options.seed)
        self.loaded: dict[str, Tasks] = {"search": search, "report": report}
        for task in (task for tasks in self.loaded.values() for task in tasks.values()):
            refuse_unusable(task, subject.is_multimodal)
        self.windows = divide(search, report, options.search.limit, options.report.limit)
        self._ready: dict[str, Tasks] = {}

    @classmethod
    def of(cls, options: ExampleOptions, subject: Subject) -> "LoadedExamples":
        """Those of equal options, where an evaluator of this subject has them loaded already, else new ones."""
        key = options.model_dump_json(include={*ExampleOptions.model_fields})
        found: LoadedExamples | None = subject.examples.get(key)
        if found is None:
            subject.examples[key] = found = cls(options, subject)
        return found

    def tasks(self, split: str) -> Tasks:
        """The tasks of a split with their requests, which are built on first use."""
        if split not in self._ready:
            options, windows = self._options, self.windows[split]
            self._ready[split] = {
                name: with_requests(task, windows[name], self.model, options.apply_chat_template, options.seed)
                for name, task in self.loaded[split].items()
            }
        return self._ready[split]

    def begin(self, split: Split) -> None:
        """Make room where another split is measured now: batches of the one before do not come again."""
        if split != self.split:
            self.states.forget()
        self.split = split
