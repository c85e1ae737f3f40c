"""One decoder layer that ranks its image tokens by a router, and weighs them by it."""

from typing import Any

import torch
from torch import Tensor, nn

from ..families.anatomy import first
from ..runtime.attend import cut
from ..runtime.layer.wrap import WrappedLayer
from ..runtime.tokens import ForwardTokens
from ..scores.router import RouterOptions


class RoutedLayer(WrappedLayer):
    """A layer with a token ratio and a router (p-MoD, arXiv:2412.04449).

    With the weight ω of an image token i: kept, x' = x + A(N1 x) and y = x' + ω F(N2 x'); left out, y = ω x. Text goes
    through the dense layer, among the kept tokens. Generated tokens meet no router.

    Args:
        arguments: Those of a wrapped layer.
        router: The router.
        options: What its logits do.
    """

    def __init__(self, *arguments: Any, router: nn.Module, options: RouterOptions) -> None:
        super().__init__(*arguments)
        self.router: Any = router
        self.options = options

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run the layer; this replaces its forward."""
        call = self.calls.current
        tokens = None if call is None else call.tokens
        if call is None or tokens is None or not any(tokens.images.counts):
            return super().run(*args, **kwargs)
        hidden, arguments = self.split_arguments(args, kwargs)
        hidden, tokens.shorter = tokens.whole(hidden), None
        tokens.routed = self.logits(hidden)
        weights = torch.where(tokens.images.mask, self.options.weights(tokens.routed), 1.0)[..., None]
        plan = self.plan(hidden, call)
        tokens.routed = None
        output = self.run_plan(hidden, arguments, plan._replace(gates=cut(weights, plan.fed)), call)
        if not self.options.reweights_rest:
            return output
        return self.with_weighted_rest(output, tokens, weights)

    def logits(self, hidden: Tensor) -> Tensor:
        """The router's logits, at least in float32, shape (batch, tokens)."""
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        weight, bias = (one.to(hidden.device, dtype) for one in (self.router.weight, self.router.bias))
        return nn.functional.linear(hidden.to(dtype), weight, bias)[..., 0]

    def with_weighted_rest(self, output: Any, tokens: ForwardTokens, weights: Tensor) -> Any:
        """What the layer returns, with ω x for the image tokens that it left out."""
        if tokens.kept is None or tokens.kept is tokens.remaining:
            return output
        states, rest = first(output), tokens.split_images(tokens.kept).rest
        states = torch.where(rest.mask[..., None], states * weights.to(states.dtype), states)
        return (states, *output[1:]) if isinstance(output, tuple) else states
