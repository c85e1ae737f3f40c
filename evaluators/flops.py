"""FLOPs of one request, counted on the work that runs."""

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from ..policies.errors import EvaluatorError
from .base import Measurement, Metric, Options, Split
from .prompts import PromptOptions, described, fixed_input, generate

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.utils.flop_counter import FlopCounterMode

    from ..policies.apply import PolicyHandle
    from .subject import Subject

COUNTED = "1 multiply-add is 2 FLOPs; matrix products, convolutions and attention count, attention as the full square"
COUNTED_ATTENTION = ("sdpa", "eager")
HEAD_PARTS = ("lm_head_prefill_flops", "lm_head_decode_flops")


class FlopsEvaluator:
    """Counts one prefill and the decode step after it, at batch size 1."""

    name: ClassVar[str] = "flops"
    options: ClassVar[type[Options]] = PromptOptions
    metrics: ClassVar[Mapping[str, Metric]] = {
        "vision_flops": Metric("flops", "minimize", f"Vision tower, projector, all outside the decoder. {COUNTED}"),
        "prefill_flops": Metric("flops", "minimize", f"The decoder over the prompt, no output layer. {COUNTED}"),
        "decode_flops": Metric("flops", "minimize", f"The decoder's step right after the prompt. {COUNTED}"),
    }
    cost: ClassVar[int] = 0
    exclusive: ClassVar[bool] = False
    splits: ClassVar[bool] = False

    def __init__(self, options: PromptOptions, subject: "Subject") -> None:
        self._options = options
        self._subject = subject
        self._input: dict[str, Tensor] | None = None

    def measure(self, handle: "PolicyHandle", split: Split) -> dict[str, Measurement]:
        """Count on the fixed prompt; `detail` has the output layer and the number of prompt tokens.

        Raises:
            EvaluatorError: torch cannot count the model's attention, or the model does not run its decoder once for
                the prompt and once for each further token.
        """
        refuse_uncounted(handle.model)
        if self._input is None:
            self._input = fixed_input(self._subject, prompt_tokens=self._options.prompt_tokens)
        total, decoder, head = count(handle.model, self._input)
        if len(decoder) != 2 or len(head) > 2:
            found = f"found {len(decoder)} calls of the decoder for two tokens, expected 2"
            raise EvaluatorError(f"FLOPs of {type(handle.model).__name__} cannot be told apart by phase", [found])
        tokens = self._input["input_ids"].shape[1]
        detail = {
            "prompt_tokens": tokens,
            "prompt": described(self._subject, self._input),
            **dict(zip(HEAD_PARTS, head, strict=False)),
        }
        figures = {
            "vision_flops": total - sum(decoder) - sum(head),
            "prefill_flops": decoder[0],
            "decode_flops": decoder[1],
        }
        return {name: Measurement(float(value), detail=detail) for name, value in figures.items()}


def refuse_uncounted(model: Any) -> None:
    """Refuse kinds of attention that torch's counter does not see: they would count as nothing.

    Raises:
        EvaluatorError: naming the kind.
    """
    kind = getattr(getattr(model.get_decoder(), "config", None), "_attn_implementation", None)
    if kind not in (None, *COUNTED_ATTENTION):
        found = f"found attn_implementation {kind}, expected {' or '.join(COUNTED_ATTENTION)}"
        hint = "set attn_implementation: sdpa under `model`"
        raise EvaluatorError(f"the FLOPs of {type(model).__name__} cannot be counted", [found], hint)


def count(model: Any, inputs: dict[str, "Tensor"]) -> tuple[int, list[int], list[int]]:
    """FLOPs of generating two tokens: all, and those of each call of the decoder and of the output layer."""
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
    """Where the work of the decoder begins: some run the vision tower in front of their first layer."""
    from ..policies.families.layers import LAYER_LISTS

    decoder = model.get_decoder()
    lists = (getattr(decoder, name, None) for name in LAYER_LISTS)
    return next((layers[0] for layers in lists if layers), decoder)


@contextmanager
def metered(
    module: "nn.Module", counter: "FlopCounterMode", calls: list[int], start: "nn.Module | None" = None
) -> Iterator[None]:
    """Append to `calls` what each call of a module adds to a counter, from where its part `start` is first called."""
    started: list[int] = []
    before = (start or module).register_forward_pre_hook(lambda *_: started.append(counter.get_total_flops()))
    after = module.register_forward_hook(lambda *_: calls.append(counter.get_total_flops() - started.pop()))
    try:
        yield
    finally:
        before.remove()
        after.remove()


def flop_counter() -> "FlopCounterMode":
    """Torch's counter, with formulas for kernels that it counts as nothing: CPU attention and a mixture's experts."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode, flop_registry, sdpa_flop_count

    def attention(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        return int(sdpa_flop_count(query, key, value))

    def experts(rows: Any, matrices: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        # Each row goes through one of the matrices, whichever expert it was sent to.
        return 2 * math.prod(rows) * int(matrices[-1])

    formulas = {
        getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None): attention,
        getattr(torch.ops.aten, "_grouped_mm", None): experts,
        # What transformers runs where torch has no kernel.
        getattr(torch.ops.transformers, "grouped_mm_fallback", None): experts,
    }
    missing = {kernel: formula for kernel, formula in formulas.items() if kernel and kernel not in flop_registry}
    return FlopCounterMode(display=False, custom_mapping=missing)
