"""Loaded tasks and lm-eval's view of a model, shared by all evaluators with the same options of examples.

They share prompts, tokens, image features and hidden states, and one evaluator's log-likelihoods of a policy serve the
others.
"""

from collections.abc import Iterator, Sequence

from torch import Tensor

from ..policies.runtime.prefix import PrefixStates
from .accuracy.memo import Memo
from .accuracy.model import lm_eval_model
from .accuracy.splits import Tasks, check_range, refuse_common_examples, split_documents
from .accuracy.task_mistakes import naming_document
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
        loaded: By split, the tasks by name; `transfer` is there once it was added.
        ranges: By split and task, the places of its documents in the data.
        split: The split that was measured last.

    Raises:
        EvaluatorError: a task does not load or cannot be used, or the splits share examples.
    """

    def __init__(self, options: ExampleOptions, subject: Subject) -> None:
        self._options, self._takes_images = options, subject.is_multimodal
        self.memo = Memo(options.memory_bytes, subject.store)
        self.states = PrefixStates(options.states_bytes)
        self.split: Split = "search"
        with quiet():
            tokens = None if options.batch_tokens == "auto" else options.batch_tokens
            self.model = lm_eval_model(subject, options.batch_size, self.memo, self.states, batch_tokens=tokens)
        # Both splits are loaded at once: a mistake in the report's tasks should show before the search, not after it.
        names = {split: options.tasks_of(split) for split in ("search", "report")}
        search = load_tasks(names["search"], options.num_fewshot, options.seed)
        is_same = names["report"] == names["search"]
        report = search if is_same else load_tasks(names["report"], options.num_fewshot, options.seed)
        self.loaded: dict[str, Tasks] = {"search": search, "report": report}
        for task in (task for tasks in self.loaded.values() for task in tasks.values()):
            refuse_unusable(task, self._takes_images)
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

    def add_transfer(self, names: Sequence[str], limit: int | None) -> None:
        """Load further tasks, as the split `transfer`.

        Args:
            names: The names of the tasks.
            limit: Documents of each task; None takes all.

        Raises:
            EvaluatorError: a task does not load or cannot be used, or shares examples with the search.
        """
        tasks = load_tasks(names, self._options.num_fewshot, self._options.seed)
        for task in tasks.values():
            refuse_unusable(task, self._takes_images)
        counts = {name: len(task.eval_docs) for name, task in tasks.items()}
        ranges = {name: check_range(name, range(limit or count), count, "`transfer`") for name, count in counts.items()}
        hint = "a transfer task measures what the search did not use: name another task, or other documents of it"
        common = {"search": self.ranges["search"], "transfer": ranges}
        refuse_common_examples(self.loaded["search"], tasks, common, hint, "transfer")
        self.loaded["transfer"], self.ranges["transfer"] = tasks, ranges

    def tasks(self, split: str) -> Tasks:
        """The tasks of a split with their requests, which are built on first use."""
        if split not in self._with_requests:
            options, ranges = self._options, self.ranges[split]
            self._with_requests[split] = {
                name: with_requests(task, ranges[name], self.model, options.apply_chat_template, options.seed)
                for name, task in self.loaded[split].items()
            }
        return self._with_requests[split]

    def calibration_prompts(self, count: int) -> Iterator[dict[str, Tensor]]:
        """The prompts of some examples of the search split, evenly spaced: inputs of batch 1, without padding.

        Answers are no part of them, except of texts that are scored as a whole. A text that is longer than the model's
        longest input loses its beginning.

        Args:
            count: The largest number of prompts.
        """
        tasks = self.tasks("search")
        first = {(name, r.doc_id): r for name, task in tasks.items() for r in reversed(task.instances)}
        usable = [request for request in reversed(first.values()) if self.model.tok_encode(request.args[0])]
        for place in range(min(count, len(usable))):
            arguments = usable[place * len(usable) // min(count, len(usable))].args
            with naming_document(tasks, self.model, None):
                prompt = self.model.encode_prompt(arguments)
            is_text = len(arguments) < 3
            yield {name: value[:, -self.model.max_length :] if is_text else value for name, value in prompt.items()}

    def begin(self, split: Split) -> None:
        """Drop the hidden states of the other split when a measurement begins: its batches do not come again."""
        if split != self.split:
            self.states.forget()
        self.split = split
