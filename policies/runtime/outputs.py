"""Completing the `attentions` that a model under a policy returns: one entry for each layer, as in the dense model."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ..families.layers import DecoderLayer
from .calls import CallTracker
from .layer.wrap import WrappedLayer
from .requests import refusal
from .selection import AllOrNone

LIFT_POLICY = "lift the policy with `handle.dense()` to look at attentions"


class Attentions:
    """Inserts None into `attentions` for layers whose attention did not run.

    transformers collects what the attentions return, so the entry of a layer that skips its attention is missing.

    Args:
        layers: The decoder layers.
        wrapped: The layers that are wrapped.
        calls: The forwards of the model.
    """

    def __init__(self, layers: Sequence[DecoderLayer], wrapped: Sequence[WrappedLayer], calls: CallTracker) -> None:
        self._places = [layer.index for layer in layers if layer.kind == "attention"]
        self._always_skipped = {
            one.layer.index
            for one in wrapped
            if one.planner.fixed_plan is not None and one.planner.fixed_plan.attended is AllOrNone.NONE
        }
        self._narrow = [one.layer.index for one in wrapped if one.heads is not None]
        self._calls = calls

    def fill(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        """Complete the output of the decoder; a forward hook.

        Raises:
            ModelError: the last layers did not run, a layer attended for some tokens only or with some heads only, or
                the entries cannot be told apart.
        """
        given = getattr(output, "attentions", None)
        call = self._calls.current
        if call is not None and call.tokens is not None and call.tokens.shorter is not None:
            reason = "its last layers did not run, before which tokens that were left out are put back"
            raise refusal("a decoder of fewer layers", reason, "apply a policy for the layers that run")
        if not given:
            if isinstance(output, tuple) and kwargs.get("output_attentions"):
                raise refusal("output_attentions of a tuple", "its entries have no names", "leave `return_dict` True")
            return
        if self._narrow:
            layers = ", ".join(map(str, self._narrow))
            raise refusal("output_attentions", f"layers {layers} run a share of their heads", LIFT_POLICY)
        if call is not None and call.shortened:
            layers = ", ".join(map(str, sorted(call.shortened)))
            reason = f"layers {layers} attended for some tokens only, whose weights are not of the full shape"
            raise refusal("output_attentions", reason, LIFT_POLICY)
        skipped = self._always_skipped | (set() if call is None else call.unattended)
        missing = skipped.intersection(self._places)
        if len(given) == len(self._places) - len(missing):
            entries = iter(given)
            output.attentions = tuple(None if place in missing else next(entries) for place in self._places)
        elif len(given) < len(self._places):
            reason = f"found {len(given)} entries for {len(self._places) - len(missing)} layers that attended"
            raise refusal("output_attentions", reason, LIFT_POLICY)
