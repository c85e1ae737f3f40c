"""A decoder layer composed anew from its sublayers, each for its own tokens."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...choice import LayerChoice
from ...families.layers import DecoderLayer
from ...families.widths import NarrowFFN
from ..attend import Attend, SplitAttention, Tokens, cut, cut_flags, put_back
from ..selection import AllOrNone, Selection
from ..streams import run_concurrently
from .roles import Roles
from .shorter import Plan


class Composition:
    """The sublayers of one layer, composed anew.

    Args:
        layer: The layer.
        choice: What it does, in canonical form.
        does: What each group of tokens does in it.
        narrow: Its FFN with a share of the channels; None where all of them run.
    """

    def __init__(self, layer: DecoderLayer, choice: LayerChoice, does: Roles, narrow: NarrowFFN | None) -> None:
        self._layer, self._shares_norm, self._narrow = layer, choice.norm == "shared", narrow
        self._split_attention = SplitAttention(layer, does)

    def run(
        self, hidden: Tensor, arguments: dict[str, Any], plan: Plan, attend: Attend, selection: Selection | None
    ) -> Tensor:
        """Run the sublayers: x' = x + A(N1 x); y = x' + ω F(N2 x'), each for its own tokens; ω are the gates, or 1.

        Args:
            hidden: What enters the layer, shape (batch, tokens, width).
            arguments: What else it was called with.
            plan: Which of the tokens in `hidden` each sublayer processes.
            attend: The attention.
            selection: The tokens in `hidden`, where it is cut.

        Returns:
            The hidden states after the layer, in the shape of `hidden`.
        """
        attended, fed, parallel, split, narrow, wide = plan[:6]
        # The tokens of the forward that the attention processes.
        asking = attended if selection is None else selection
        alike = narrow is AllOrNone.NONE or narrow is fed
        if split is None and alike and attended is fed is not AllOrNone.NONE:
            # One gather and one scatter serve both sublayers.
            own = plan._replace(parallel=flags_of(parallel, fed))
            return put_back(hidden, self._run_both(cut(hidden, fed), arguments, asking, own, attend), fed)
        middle = hidden
        if split is not None:
            middle = self._split_attention.add(hidden, arguments, split, attend)
        elif attended is not AllOrNone.NONE:
            part = cut(hidden, attended)
            normed = self._layer.sublayers.attention_norm(part)
            update = attend(normed, arguments, asking, asking)
            middle = put_back(hidden, part + update, attended)
        for tokens, is_narrow in ((narrow, True), (wide, False)):
            if tokens is not AllOrNone.NONE:
                part, layer_input = cut(middle, tokens), cut(hidden, tokens)
                normed = self._ffn_input(layer_input, part, flags_of(parallel, tokens))
                middle = put_back(middle, part + self._run_ffn(normed, arguments, is_narrow, plan.gates), tokens)
        return middle

    def _run_ffn(self, normed: Tensor, arguments: dict[str, Any], is_narrow: bool, gates: Tensor | None) -> Tensor:
        """ω F of a normalised input; `is_narrow` where only a share of the channels runs."""
        parts = self._narrow.parts() if is_narrow and self._narrow is not None else None
        update = self._layer.sublayers.run_ffn(normed, arguments, parts)
        return update if gates is None else gates.to(update.dtype) * update

    def _run_both(self, x: Tensor, arguments: dict[str, Any], tokens: Tokens, plan: Plan, attend: Attend) -> Tensor:
        """Run both sublayers for the same tokens, concurrently where neither reads the other's output."""
        parts, parallel = self._layer.sublayers, plan.parallel
        run_ffn = partial(self._run_ffn, arguments=arguments, is_narrow=plan.narrow is plan.fed, gates=plan.gates)
        normed = parts.attention_norm(x)
        if parallel is True or parts.parallel:
            # Where the wiring shares the attention's norm, it is computed once.
            shared = parallel is True and self._shares_norm
            ffn_input = normed if shared else self._ffn_input(x, x, parallel)
            attention, ffn = run_concurrently(
                x, lambda: attend(normed, arguments, tokens, tokens), lambda: run_ffn(ffn_input)
            )
            return x + attention + ffn
        middle = x + attend(normed, arguments, tokens, tokens)
        return middle + run_ffn(self._ffn_input(x, middle, parallel))

    def _ffn_input(self, x: Tensor, middle: Tensor, parallel: bool | Tensor) -> Tensor:
        """The normalised input of the FFN: N2 x', or for parallel tokens the norm of the layer's input x."""
        parts = self._layer.sublayers
        norm = parts.attention_norm if self._shares_norm else parts.ffn_norm
        if parallel is True:
            return norm(x)
        own = parts.ffn_norm(x if parts.parallel else middle)
        return own if parallel is False else torch.where(parallel[..., None], norm(x), own)


def flags_of(flags: bool | Tensor, tokens: Tokens) -> bool | Tensor:
    """The flags of some tokens, shape (batch, kept)."""
    return cut_flags(flags, tokens) if isinstance(flags, Tensor) else flags
