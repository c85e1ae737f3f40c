"""The FLOPs evaluator: counts the operations that one request runs."""

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from ..policies.errors import EvaluatorError
from .base import Measurement, Metric, Options, Split
from .prompts import PromptOptions, describe_input, fixed_input, generate

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.utils.flop_counter import FlopCounterMode

    from ..policies.apply import PolicyHandle
    from .subject import Subject

COUNTING_RULE = (
    "1 multiply-add is 2 FLOPs; matrix products, convolutions and attention count, attention as the full square"
)
COUNTABLE_ATTENTION = ("sdpa", "eager")
HEAD_KEYS = ("lm_head_prefill_flops", "lm_head_decode_flops")


class FlopsEvaluator:
    """Counts one prefill and the decode step after it, at batch size 1."""

    name: ClassVar[str] = "flops"
    options: ClassVar[type[Options]] = PromptOptions
    metrics: ClassVar[Mapping[str, Metric]] = {
        "vision_flops": Metric(
            "flops", "minimize", f"Vision tower, projector and all else outside the decoder. {COUNTING_RULE}"
        ),
        "prefill_flops": Metric("flops", "minimize", f"The decoder over the prompt, no output layer. {COUNTING_RULE}"),
        "decode_flops": Metric("flops", "minimize", f"The decoder's step right after the prompt. {COUNTING_RULE}"),
    }
    cost: ClassVar[int] = 0
    exclusive: ClassVar[bool] = False
    splits: ClassVar[bool] = False

    def __init__(self, options: PromptOptions, subject: "Subject") -> None:
        self._options = options
        self._subject = subject
        self._input: dict[str, Tensor] | None = None

    def measure(self, handle: "PolicyHandle", split: Split) -> dict[str, Measurement]:
        """Count the FLOPs of the fixed prompt; `detail` has those of the output layer, and the number of prompt tokens.

        Raises:
            EvaluatorError: torch cannot count the model's attention, or the model does not run its decoder exactly once
                for the prompt and once for each further token.
        """
        refuse_uncounted(handle.model)
        refuse_uncounted_weights(handle.model)
        if self._input is None:
            self._input = fixed_input(self._subject, prompt_tokens=self._options.prompt_tokens)
        total, decoder, head = count(handle.model, self._input)
        if len(decoder) != 2 or len(head) > 2:
            found = f"found {len(decoder)} calls of the decoder for two tokens, expected 2"
            raise EvaluatorError(f"FLOPs of {type(handle.model).__name__} cannot be divided by phase", [found])
        tokens = self._input["input_ids"].shape[1]
        detail = {
            "prompt_tokens": tokens,
            "prompt": describe_input(self._subject, self._input),
            **dict(zip(HEAD_KEYS, head, strict=False)),
        }
        flops = {
            "vision_flops": total - sum(decoder) - sum(head),
            "prefill_flops": decoder[0],
            "decode_flops": decoder[1],
        }
        return {name: Measurement(float(value), detail=detail) for name, value in flops.items()}


def refuse_uncounted(model: Any) -> None:
    """Refuse attention implementations that torch's counter does not see and would count as 0.

    Raises:
        EvaluatorError: naming the implementation.
    """
    kind = getattr(getattr(model.get_decoder(), "config", None), "_attn_implementation", None)
    if kind not in (None, *COUNTABLE_ATTENTION):
        found = f"found attn_implementation {kind}, expected {' or '.join(COUNTABLE_ATTENTION)}"
        hint = "set attn_implementation: sdpa under `model`"
        raise EvaluatorError(f"the FLOPs of {type(model).__name__} cannot be counted", [found], hint)


def refuse_uncounted_weights(model: Any) -> None:
    """Refuse quantised linear layers whose products torch's counter does not see: one of each kind is run.

    Raises:
        EvaluatorError: naming the kind.
    """
    import torch

    layers = (one for one in model.modules() if is_quantized_linear(one))
    kinds = {(type(one), type(getattr(one, "weight", None))): one for one in layers}
    for one in kinds.values():
        x = torch.zeros(1, one.in_features, device=model.device, dtype=model.dtype)
        with torch.no_grad(), flop_counter() as counter:
            one(x)
        expected = 2 * one.in_features * one.out_features
        if counter.get_total_flops() < expected:
            found = f"found {counter.get_total_flops()} for one token in a {type(one).__name__}, expected {expected}"
            hint = "leave `flops` out of `evaluate`, or load the model unquantised or with `quantization: int8`"
            raise EvaluatorError(f"the FLOPs of {type(model).__name__} cannot be counted", [found], hint)


def is_quantized_linear(module: Any) -> bool:
    """True for a linear layer whose weights are no plain parameter."""
    from ..policies.quantized.tensors import is_plain

    if not (hasattr(module, "in_features") and hasattr(module, "out_features")):
        return False
    weight = getattr(module, "weight", None)
    return weight is None or not is_plain(weight)


def count(model: Any, inputs: dict[str, "Tensor"]) -> tuple[int, list[int], list[int]]:
    """FLOPs of generating two tokens: the total, and those of each call of the decoder and of the output layer."""
    counter = flop_counter()
    decoder: list[int] = []
    head: list[int] = []
    with ExitStack() as stack:
        stack.enter_context(metered(model.get_decoder(), counter, decoder, first_layer(model)))
        output_layer = model.get_output_embeddings()
        if output_layer is not None:
            stack.enter_context(metered(output_layer, counter, head))
        stack.enter_context(counter)
        generate(model, inputs, new_tokens=2)
    return counter.get_total_flops(), decoder, head


def first_layer(model: Any) -> "nn.Module":
    """The first decoder layer, where counting starts: some decoders run the vision tower before it."""
    from ..policies.families.layers import LAYER_LISTS

    decoder = model.get_decoder()
    lists = (getattr(decoder, name, None) for name in LAYER_LISTS)
    return next((layers[0] for layers in lists if layers), decoder)


@contextmanager
def metered(
    module: "nn.Module", counter: "FlopCounterMode", calls: list[int], start: "nn.Module | None" = None
) -> Iterator[None]:
    """Append the FLOPs of each call of a module to `calls`, counted from the call of its part `start`."""
    at_start: list[int] = []
    before = (start or module).register_forward_pre_hook(lambda *_: at_start.append(counter.get_total_flops()))
    after = module.register_forward_hook(lambda *_: calls.append(counter.get_total_flops() - at_start.pop()))
    try:
        yield
    finally:
        before.remove()
        after.remove()


def flop_counter() -> "FlopCounterMode":
    """Torch's FLOP counter, with formulas for kernels that it counts as 0: CPU attention and grouped experts."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode, flop_registry, sdpa_flop_count

    def attention(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        return int(sdpa_flop_count(query, key, value))

    def experts(rows: Any, matrices: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        # Each row is multiplied by one expert's matrix, and all these matrices have the same shape.
        return 2 * math.prod(rows) * int(matrices[-1])

    formulas = {
        getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None): attention,
        getattr(torch.ops.aten, "_grouped_mm", None): experts,
        # transformers runs this where torch has no kernel.
        getattr(torch.ops.transformers, "grouped_mm_fallback", None): experts,
    }
    missing = {kernel: formula for kernel, formula in formulas.items() if kernel and kernel not in flop_registry}
    return FlopCounterMode(display=False, custom_mapping=missing)
