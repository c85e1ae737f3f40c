"""Options of evaluators that measure on examples: tasks, numbers of documents, memory."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from .base import Options


class SplitOptions(Options):
    """The examples of one split.

    Attributes:
        tasks: Tasks of this split alone; None takes the evaluator's tasks.
        limit: Number of documents of each task. None takes all; of data that both splits use, the search takes the
            first half and the report the rest. Documents are taken in the order of the data, so a task whose data is
            sorted by label or kind should shuffle it (`process_docs`).
    """

    tasks: list[str] | None = Field(default=None, min_length=1)
    limit: int | None = Field(default=None, ge=1)


class ExampleOptions(Options):
    """Options of every evaluator that measures on examples.

    Attributes:
        tasks: lm-eval's names of tasks, groups or tags, or paths of task files.
        search: The examples that guide the search.
        report: The examples that confirm the front.
        batch_size: Number of requests in a batch where numbers are lm-eval's to the last bit, as on the report split,
            and the least number of answers that are generated together.
        batch_tokens: Number of tokens in a batch of the search split, whose rows are sorted by length, so that little
            is padding. `auto` tries a GPU once, and takes what a CPU computes at its full speed.
        num_fewshot: Examples in each prompt; None leaves it to the task.
        apply_chat_template: Put prompts into the model's chat template.
        seed: Of few-shot examples and of sampled answers.
        memory_bytes: Limit of the cache of values that do not depend on the policy, such as tokens, pixels and image
            features, on the model's device.
        states_bytes: Limit of the cache of hidden states, on the model's device: a policy that shares its first layers
            with an earlier one is computed from the first layer that differs. It helps where given answers are scored:
            by `divergence`, and by tasks that ask for log-likelihoods. Results are the same; 0 disables it.
    """

    tasks: list[str] = []
    search: SplitOptions = SplitOptions()
    report: SplitOptions = SplitOptions()
    batch_size: int = Field(default=16, ge=1)
    batch_tokens: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
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
        """The names of the tasks of a split."""
        own: SplitOptions = getattr(self, split)
        return own.tasks or self.tasks
