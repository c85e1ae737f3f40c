"""The speculative evaluator: a policy as a draft of its own model, in transformers' assisted generation.

The model under the policy guesses tokens, the dense model checks them in one forward. The answer is the dense model's
own, so a policy costs no accuracy here: it is good where many of its tokens are accepted, and cheap.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from ..policies.errors import EvaluatorError
from .base import Measurement, Metric, Options, Split
from .latency import stable_timing, synchronize
from .prompts import PromptOptions, fixed_input, generate

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from ..policies.apply import PolicyHandle
    from .subject import Subject


class SpeculativeOptions(PromptOptions):
    """Options of the speculative evaluator.

    Attributes:
        draft_tokens: Number of tokens that the draft guesses before each check.
        new_tokens: Number of tokens to generate from each prompt.
        prompts: Number of prompts, at most: prompts of examples, as far as there are, else synthetic ones.
        repeats: Number of timed generations from each prompt, with the draft and without it in turns.
    """

    draft_tokens: int = Field(default=5, ge=1)
    new_tokens: int = Field(default=64, ge=2)
    prompts: int = Field(default=4, ge=1)
    repeats: int = Field(default=2, ge=1)


class Checks:
    """A streamer that counts the tokens each check of a draft gives; transformers passes it the prompt first."""

    def __init__(self) -> None:
        self.tokens: list[int] = []

    def put(self, value: Any) -> None:
        """Count the tokens of one check, shape (1, tokens): the accepted ones, and one of the model itself."""
        self.tokens.append(value.numel())

    def end(self) -> None:
        """Do nothing at the end of a generation."""


@dataclass
class Speculation:
    """What came of the drafts of some generations.

    Attributes:
        accepted: Accepted tokens of each check that had drafted tokens.
        drafted: Drafted tokens of each of these checks.
        seconds: Duration of each assisted generation.
        plain_seconds: Duration of each generation without a draft, measured in turns with these.
    """

    accepted: list[int] = field(default_factory=list)
    drafted: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    plain_seconds: list[float] = field(default_factory=list)

    def count(self, tokens: list[int], new_tokens: int, draft_tokens: int) -> None:
        """Count the checks of one generation.

        Args:
            tokens: The tokens that each check gave.
            new_tokens: The tokens of the whole answer.
            draft_tokens: The tokens that a draft guesses, unless fewer are left: the last token is the model's own.
        """
        left = new_tokens
        for given in tokens:
            if left > 1:
                self.accepted.append(given - 1)
                self.drafted.append(min(draft_tokens, left - 1))
            left -= given


class SpeculativeEvaluator:
    """Generates from fixed prompts with the policy as a draft of the dense model, and without a draft."""

    name: ClassVar[str] = "speculative"
    options: ClassVar[type[Options]] = SpeculativeOptions
    metrics: ClassVar[Mapping[str, Metric]] = {
        "accepted_tokens": Metric(
            "tokens", "maximize", "Tokens of the draft that the dense model accepts, mean over its checks"
        ),
        "draft_acceptance": Metric(
            "fraction", "maximize", "Share of the drafted tokens that the dense model accepts", "other"
        ),
        "speculative_speedup": Metric(
            "times", "maximize", "Tokens a second with the draft over tokens a second of the dense model alone"
        ),
    }
    cost: ClassVar[int] = 12
    exclusive: ClassVar[bool] = True
    splits: ClassVar[bool] = False

    def __init__(self, options: SpeculativeOptions, subject: "Subject") -> None:
        self._options = options
        self._subject = subject
        self._inputs: list[dict[str, Tensor]] = []
        self._draft: PreTrainedModel | None = None

    def measure(self, handle: "PolicyHandle", split: Split) -> dict[str, Measurement]:
        """Generate with and without the draft; `detail` has the times of both.

        Raises:
            EvaluatorError: an answer differs from the dense model's own.
            ModelError: there can be no draft of this model.
        """
        from ..policies.apply import apply_policy
        from ..policies.draft import refuse_trained

        refuse_trained(handle.policy)
        options, model = self._options, handle.model
        draft, found = self._dense_draft(model), Speculation()
        with handle.dense(), apply_policy(draft, handle.policy), stable_timing(None):
            for number, inputs in enumerate(self._fixed_inputs()):
                plain = generate(model, inputs, options.new_tokens).sequences
                checks = Checks()
                assisted = assisted_generate(model, draft, inputs, options.new_tokens, streamer=checks)
                require_equal(assisted, plain, inputs, number)
                found.count(checks.tokens[1:], options.new_tokens, options.draft_tokens)
                for turn in range(number, number + options.repeats):
                    self._time(model, draft, inputs, found, draft_first=turn % 2 == 0)
        return self._measurements(found)

    def _dense_draft(self, model: "PreTrainedModel") -> "PreTrainedModel":
        """A second tree of modules over the model's tensors, made on first use."""
        from ..policies.draft import dense_draft

        if self._draft is None:
            self._draft = dense_draft(model)
            constant = {"num_assistant_tokens_schedule": "constant", "assistant_confidence_threshold": 0.0}
            self._draft.generation_config.update(num_assistant_tokens=self._options.draft_tokens, **constant)
        return self._draft

    def _fixed_inputs(self) -> "list[dict[str, Tensor]]":
        """The inputs of all prompts, made on first use."""
        if not self._inputs:
            count = min(self._options.prompts, len(self._subject.prompts) or self._options.prompts)
            tokens = self._options.prompt_tokens
            self._inputs = [fixed_input(self._subject, 1, tokens, number) for number in range(count)]
        return self._inputs

    def _time(self, model: Any, draft: Any, inputs: "dict[str, Tensor]", found: Speculation, draft_first: bool) -> None:
        """Time a generation with the draft and one without it, in either order."""
        for with_draft in (draft_first, not draft_first):
            synchronize(model)
            start = time.perf_counter()
            if with_draft:
                assisted_generate(model, draft, inputs, self._options.new_tokens)
            else:
                generate(model, inputs, self._options.new_tokens)
            synchronize(model)
            (found.seconds if with_draft else found.plain_seconds).append(time.perf_counter() - start)

    def _measurements(self, found: Speculation) -> dict[str, Measurement]:
        accepted, drafted, checks = sum(found.accepted), sum(found.drafted), len(found.accepted)
        options, kind = self._options, "examples'" if self._subject.prompts else "synthetic"
        detail = {
            "draft_tokens": options.draft_tokens,
            "new_tokens": options.new_tokens,
            "prompt_tokens": [inputs["input_ids"].shape[1] for inputs in self._inputs],
            "prompt": f"{len(self._inputs)} {kind} prompts",
        }
        times = {
            "repeats_ms": [second * 1e3 for second in found.seconds],
            "dense_repeats_ms": [second * 1e3 for second in found.plain_seconds],
        }
        speedup = sum(found.plain_seconds) / sum(found.seconds)
        return {
            "accepted_tokens": Measurement(accepted / checks, n=checks, detail=detail),
            "draft_acceptance": Measurement(accepted / drafted, n=drafted, detail=detail),
            "speculative_speedup": Measurement(speedup, n=len(found.seconds), detail={**detail, **times}),
        }


def assisted_generate(
    model: "PreTrainedModel", draft: "PreTrainedModel", inputs: "dict[str, Tensor]", new_tokens: int, **options: Any
) -> "Tensor":
    """Generate exactly `new_tokens` tokens with a draft, shape (1, prompt + new_tokens).

    Without a padding token: transformers would take that token for padding wherever a draft reads it.
    """
    sequences: Tensor = generate(
        model, inputs, new_tokens, assistant_model=draft, pad_token_id=None, **options
    ).sequences
    return sequences


def require_equal(assisted: "Tensor", plain: "Tensor", inputs: "dict[str, Tensor]", number: int) -> None:
    """Refuse a generation with a draft whose tokens are not those of the dense model.

    Raises:
        EvaluatorError: naming the first token that differs.
    """
    import torch

    if torch.equal(assisted, plain):
        return
    length = min(assisted.shape[1], plain.shape[1])
    differ = (assisted[0, :length] != plain[0, :length]).nonzero()
    place = (int(differ[0]) if len(differ) else length) - inputs["input_ids"].shape[1]
    raise EvaluatorError(
        "generation with the policy as a draft gives other tokens than the dense model",
        [f"prompt {number}: token {place} of the answer is the first that differs"],
        "set `model.dtype: float32`: in smaller dtypes several tokens at once and one at a time round differently",
    )
