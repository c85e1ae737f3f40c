"""What a model under a policy returns of its layers: one entry for each of them, as the dense model does."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ..families.layers import DecoderLayer
from .calls import Calls
from .requests import refusal
from .tokens import Whole
from .wrap import WrappedLayer


class Attentions:
    """Puts None into `attentions` where a layer attended to nothing.

    transformers collects what the attentions of the layers return, so those that do not run leave no gap.

    Args:
        layers: The decoder layers.
        wrapped: Those that are not the original.
        calls: The forwards of the model.
    """

    def __init__(self, layers: Sequence[DecoderLayer], wrapped: Sequence[WrappedLayer], calls: Calls) -> None:
        self._places = [layer.index for layer in layers if layer.kind == "attention"]
        self._always = {one.layer.index for one in wrapped if one.steady is not None and one.steady[0] is Whole.NONE}
        self._calls = calls

    def fill(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        """Put the gaps into the output of the decoder; a hook.

        Raises:
            ModelError: a layer attended for some tokens only, or the entries cannot be told apart.
        """
        given = getattr(output, "attentions", None)
        call = self._calls.now
        if not given:
            if isinstance(output, tuple) and kwargs.get("output_attentions"):
                raise refusal("output_attentions of a tuple", "its entries have no names", "leave `return_dict` True")
            return
        if call is not None and call.shortened:
            layers = ", ".join(map(str, sorted(call.shortened)))
            reason = f"layers {layers} attended for some tokens only, whose weights are not of the full shape"
            raise refusal("output_attentions", reason, "lift the policy with `handle.dense()` to look at attentions")
        gaps = self._always | (set() if call is None else call.unattended)
        missing = gaps.intersection(self._places)
        if len(given) == len(self._places) - len(missing):
            entries = iter(given)
            output.attentions = tuple(None if place in missing else next(entries) for place in self._places)
        elif len(given) < len(self._places):
            reason = f"found {len(given)} entries for {len(self._places) - len(missing)} layers that attended"
            raise refusal("output_attentions", reason, "lift the policy with `handle.dense()` to look at attentions")
