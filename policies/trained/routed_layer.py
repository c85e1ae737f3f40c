"""One decoder layer that ranks its image tokens by a router, and weighs them by it."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from ..families.anatomy import first
from ..runtime.attend import cut
from ..runtime.layer.wrap import WrappedLayer
from ..runtime.tokens import ForwardTokens
from ..scores.router import RouterOptions
from .routers import Routers


class RoutedLayer(WrappedLayer):
    """A layer with a token ratio and a router (p-MoD, arXiv:2412.04449; γ-MoD, arXiv:2410.13859).

    With the weight ω of an image token i: kept, x' = x + A(N1 x) and y = x' + ω F(N2 x'); left out, y = ω x, or x where
    the options say so. Text goes through the dense layer, among the kept tokens. Generated tokens meet no router.

    Args:
        arguments: The arguments of `WrappedLayer`.
        routers: The routers of the policy.
        options: What their logits do.
    """

    def __init__(self, *arguments: Any, routers: Routers, options: RouterOptions) -> None:
        super().__init__(*arguments)
        self.routers = routers
        self.router: Any = routers.of_layer(self.layer.index)
        self.options = options

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run the layer; this replaces its forward."""
        call = self.calls.current
        tokens = None if call is None else call.tokens
        if call is None or tokens is None or not any(tokens.images.counts):
            return super().run(*args, **kwargs)
        hidden, arguments = self.split_arguments(args, kwargs)
        hidden, tokens.shorter = tokens.whole(hidden), None
        logits = tokens.routed = self.logits(hidden)
        weights = torch.where(tokens.images.mask, self.options.weights(logits), 1.0)[..., None]
        tokens.routed_counts = self.counts_above_threshold(logits, tokens)
        plan = self.plan(hidden, call)
        tokens.routed = tokens.routed_counts = None
        if self.layer.module.training and torch.is_grad_enabled():
            self.routers.losses.append(selection_loss(logits, tokens))
        output = self.run_plan(hidden, arguments, plan._replace(gates=cut(weights, plan.fed)), call)
        if not self.options.reweights_rest:
            return output
        return self.with_weighted_rest(output, tokens, weights)

    def logits(self, hidden: Tensor) -> Tensor:
        """The router's logits, at least in float32, shape (batch, tokens)."""
        if self.options.reads == "norm":
            hidden = self.layer.sublayers.attention_norm(hidden)
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        weight, bias = (one.to(hidden.device, dtype) for one in (self.router.weight, self.router.bias))
        return nn.functional.linear(hidden.to(dtype), weight, bias)[..., 0]

    def counts_above_threshold(self, logits: Tensor, tokens: ForwardTokens) -> list[int] | None:
        """How many image tokens of each row pass the threshold; None without one, and in training."""
        threshold = self.options.threshold
        if threshold is None or self.layer.module.training:
            return None
        counts: list[int] = (tokens.remaining.mask & (logits.sigmoid() > threshold)).sum(dim=1).tolist()
        return counts

    def with_weighted_rest(self, output: Any, tokens: ForwardTokens, weights: Tensor) -> Any:
        """What the layer returns, with ω x for the image tokens that it left out."""
        if tokens.kept is None or tokens.kept is tokens.remaining:
            return output
        states, rest = first(output), tokens.split_images(tokens.kept).rest
        states = torch.where(rest.mask[..., None], states * weights.to(states.dtype), states)
        return (states, *output[1:]) if isinstance(output, tuple) else states


def selection_loss(logits: Tensor, tokens: ForwardTokens) -> Tensor:
    """The cross-entropy between σ(r) and whether the layer kept a token, mean over image tokens, in nats.

    With it the router's probabilities say what the layer does, so that a threshold can select in its place.
    """
    images = tokens.images.mask
    kept = images if tokens.kept is None else tokens.kept.mask
    return binary_cross_entropy_with_logits(logits[images], kept[images].to(logits.dtype))
