"""The memory evaluator: bytes of the key-value cache, read from the cache itself, and of the weights that run."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from ..policies.errors import EvaluatorError
from .base import Measurement, Metric, Options, Split
from .prompts import PromptOptions, describe_input, fixed_input, generate

if TYPE_CHECKING:
    from torch import Tensor

    from ..policies.apply import PolicyHandle
    from .subject import Subject


class MemoryEvaluator:
    """Measures the size of the cache after the prefill of one prompt, at batch size 1, and that of the weights."""

    name: ClassVar[str] = "memory"
    options: ClassVar[type[Options]] = PromptOptions
    metrics: ClassVar[Mapping[str, Metric]] = {
        "kv_cache_bytes": Metric(
            "bytes",
            "minimize",
            "Keys and values of all layers after the prefill, and the positions that shortened layers store",
        ),
        "weight_bytes": Metric(
            "bytes",
            "minimize",
            "Weights of the whole model, as they are stored, without those that the policy runs for no token",
        ),
    }
    cost: ClassVar[int] = 0
    exclusive: ClassVar[bool] = False
    splits: ClassVar[bool] = False

    def __init__(self, options: PromptOptions, subject: "Subject") -> None:
        self._options = options
        self._subject = subject
        self._input: dict[str, Tensor] | None = None

    def measure(self, handle: "PolicyHandle", split: Split) -> dict[str, Measurement]:
        """Measure the cache after the fixed prompt; `detail` has the number of prompt tokens.

        Raises:
            EvaluatorError: the model has no cache with one entry for each layer.
        """
        from ..policies.caches.cache import kv_cache_bytes

        if self._input is None:
            self._input = fixed_input(self._subject, prompt_tokens=self._options.prompt_tokens)
        cache = generate(handle.model, self._input, new_tokens=1).past_key_values
        if not hasattr(cache, "layers"):
            found = f"found {type(cache).__name__}, expected a cache with one entry for each layer"
            raise EvaluatorError(f"the cache of {type(handle.model).__name__} cannot be read", [found])
        detail = {
            "prompt_tokens": self._input["input_ids"].shape[1],
            "prompt": describe_input(self._subject, self._input),
        }
        return {
            "kv_cache_bytes": Measurement(float(kv_cache_bytes(cache)), detail=detail),
            "weight_bytes": Measurement(float(handle.weight_bytes)),
        }
