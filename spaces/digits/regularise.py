"""Training that makes a decoder bear missing parts, as one expects of a large model.

Two published regularisers: stochastic depth on sublayers (LayerDrop, Fan et al. 2019, arXiv:1909.11556; Huang et al.
2016, arXiv:1603.09382) and a random share of the image tokens that deeper layers no longer see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

FIRST_THINNED_LAYER = 3


class Regulariser:
    """Drops sublayers and image tokens at random while it is attached to a decoder.

    Args:
        decoder: The text decoder, a `LlamaModel`.
        sublayer_drop: Chance of each sublayer to be left out, drawn anew for each row of a batch.
        thin_chance: Chance of a batch to lose image tokens in its deeper layers.
        image_tokens: The places of the image tokens in a sequence.
    """

    def __init__(self, decoder: nn.Module, sublayer_drop: float, thin_chance: float, image_tokens: slice) -> None:
        self.decoder = decoder
        self.sublayer_drop = sublayer_drop
        self.thin_chance = thin_chance
        self.image_tokens = image_tokens
        self.thin_from = len(decoder.layers)
        self.hidden_keys: torch.Tensor | None = None

    def draw(self) -> None:
        """Draw which image tokens vanish for the coming batch, and from which layer on."""
        layers = len(self.decoder.layers)
        self.thin_from = layers
        if torch.rand(()) >= self.thin_chance:
            return
        self.thin_from = int(torch.randint(FIRST_THINNED_LAYER, layers, ()))
        count = self.image_tokens.stop - self.image_tokens.start
        share = float(torch.rand(())) * 0.9
        self.hidden_keys = self.image_tokens.start + torch.randperm(count)[: int(share * count)]

    @contextmanager
    def attached(self) -> Iterator[Regulariser]:
        """Attach to the decoder for the length of a `with` block."""
        handles = []
        for index, layer in enumerate(self.decoder.layers):
            handles.append(layer.self_attn.register_forward_hook(self._drop))
            handles.append(layer.mlp.register_forward_hook(self._drop))
            handles.append(layer.register_forward_pre_hook(self._thin(index), with_kwargs=True))
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def _drop(self, module: nn.Module, args: tuple, output: torch.Tensor | tuple) -> torch.Tensor | tuple:
        hidden = output[0] if isinstance(output, tuple) else output
        stays = torch.rand(len(hidden), 1, 1) >= self.sublayer_drop
        return (hidden * stays, *output[1:]) if isinstance(output, tuple) else hidden * stays

    def _thin(self, index: int) -> Callable:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            if index < self.thin_from:
                return args, kwargs
            # A token that no later layer reads has no effect any more: hiding its key is the same as leaving it out.
            mask = kwargs["attention_mask"].clone()
            mask[..., self.hidden_keys] = False
            mask |= torch.eye(mask.shape[-1], dtype=torch.bool)  # no row may be empty
            return args, {**kwargs, "attention_mask": mask}

        return hook
