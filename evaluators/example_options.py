"""Options of every evaluator that measures on examples: which tasks, how many documents, and how much memory."""

from pydantic import Field, model_validator

from .base import Options


class SplitOptions(Options):
    """Which examples one split has.

    Attributes:
        tasks: Tasks of its own; None takes those of the evaluator.
        limit: Documents of each task. None takes all; of data that both splits use, the search takes the first half
            and the report the rest. Documents are taken in the order of the data, so data sorted by label or kind
            should be shuffled by its task (`process_docs`).
    """

    tasks: list[str] | None = Field(default=None, min_length=1)
    limit: int | None = Field(default=None, ge=1)


class ExampleOptions(Options):
    """Options of every evaluator that measures on examples.

    Attributes:
        tasks: lm-eval's names of tasks, groups or tags, or paths of task files.
        search: The examples that guide the search.
        report: The examples that the front is confirmed on.
        batch_size: Requests at a time.
        num_fewshot: Examples in each prompt; None leaves it to the task.
        apply_chat_template: Put prompts into the model's chat template.
        seed: Of few-shot examples and of sampled answers.
        memory_bytes: How much may be kept of what does not depend on the policy, such as tokens, pixels and image
            features, on the model's device.
        states_bytes: How much may be kept of hidden states, on the model's device, so that a policy that begins as an
            earlier one did is computed from where they part. It is of use where given answers are scored: by
            `divergence`, and by tasks that ask for log-likelihoods. The figures are the same; 0 keeps none.
    """

    tasks: list[str] = []
    search: SplitOptions = SplitOptions()
    report: SplitOptions = SplitOptions()
    batch_size: int = Field(default=16, ge=1)
    num_fewshot: int | None = Field(default=None, ge=0)
    apply_chat_template: bool = False
    seed: int = Field(default=1234, ge=0, lt=2**32)
    memory_bytes: int = Field(default=2 << 30, ge=0)
    states_bytes: int = Field(default=1 << 30, ge=0)

    @model_validator(mode="after")
    def _has_tasks(self) -> "ExampleOptions":
        missing = [split for split in ("search", "report") if not self.tasks_of(split)]
        if missing:
            raise ValueError(f"found no tasks for the {' and the '.join(missing)} split, expected `tasks: [...]`")
        return self

    def tasks_of(self, split: str) -> list[str]:
        """The tasks of a split."""
        own: SplitOptions = getattr(self, split)
        return own.tasks or self.tasks
