"""The two sublayers of a decoder layer, made of its parts."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from .anatomy import CACHE_ARGUMENTS, Anatomy, Kind, cache_argument, first, parameters


class Sublayers:
    """The attention and the FFN of one decoder layer, each with the norms that belong to it.

    A and F are the sublayers (what they add to the residual stream, scales included), N1 and N2 the norms that feed
    them. A layer computes x' = x + A(N1 x), y = x' + F(N2 x'); a parallel one y = x + A(N1 x) + F(N2 x).

    Args:
        layer: The decoder layer.
        anatomy: The names of its parts.
        output: What the layer returned in a recorded call.

    Attributes:
        takes_position_ids: True where the attention names the position ids among its arguments.
    """

    def __init__(self, layer: nn.Module, anatomy: Anatomy, output: Any) -> None:
        self._layer = layer
        self._anatomy = anatomy
        self._tuple_length = len(output) if isinstance(output, tuple) else None
        # Read once, because `inspect` cannot run in a compiled forward; a replaced attention takes the same arguments.
        accepted = parameters(self.attention)
        takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
        self._accepted = None if takes_all else frozenset(accepted)
        self.takes_position_ids = "position_ids" in accepted
        self._renamed = anatomy.renamed
        in_layer, in_attention = cache_argument(layer), cache_argument(self.attention)
        if in_layer != in_attention and in_layer and in_attention:
            self._renamed += ((in_attention, in_layer),)

    @property
    def attention(self) -> nn.Module:
        """The attention module, or the mixer in its place, without its norms."""
        return getattr(self._layer, self._anatomy.attention)

    @property
    def attention_names(self) -> tuple[str, ...]:
        """The attributes of the layer that make up its attention, without the norm that feeds it."""
        return tuple(name for name in (self._anatomy.attention, self._anatomy.after_attention) if name is not None)

    @property
    def ffn_names(self) -> tuple[str, ...]:
        """The attributes of the layer that make up its FFN, without the norm that feeds it."""
        return tuple(name for name in (*self._anatomy.ffn, self._anatomy.after_ffn) if name is not None)

    @property
    def ffn_parent(self) -> nn.Module:
        """The module that holds the parts of the FFN: the FFN itself, or the layer where it has no own module."""
        return self._layer if self.ffn_holder is None else self.ffn_holder

    @property
    def ffn_holder(self) -> nn.Module | None:
        """The module of the FFN; None where its parts are attributes of the layer itself."""
        return getattr(self._layer, self._anatomy.ffn[0]) if len(self._anatomy.ffn) == 1 else None

    @property
    def ffn_children(self) -> dict[str, nn.Module]:
        """The modules that the FFN consists of, by their names in `ffn_parent`."""
        if self.ffn_holder is not None:
            return dict(self.ffn_holder.named_children())
        return {name: getattr(self._layer, name) for name in self._anatomy.ffn}

    @property
    def norm_names(self) -> tuple[str | None, str | None]:
        """The attributes of the layer that hold N1 and N2, which may be one; None where a sublayer has no such norm."""
        return self._anatomy.before_attention, self._anatomy.before_ffn

    @property
    def cache_name(self) -> str:
        """The name of the layer's cache argument."""
        return cache_argument(self._layer) or cache_argument(self.attention) or CACHE_ARGUMENTS[1]

    @property
    def parallel(self) -> bool:
        """True where both sublayers read the layer's input."""
        return self._anatomy.parallel

    @property
    def kind(self) -> Kind:
        """`attention`, `linear` or `cross`; see `Anatomy`."""
        return self._anatomy.kind

    def norm_and_attend(self, x: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """A(N1 x), shape (batch, tokens, width).

        Args:
            x: The layer's input, shape (batch, tokens, width).
            arguments: What else the layer was called with.
        """
        return self.run_attention(self.attention_norm(x), arguments)

    def run_attention(
        self, normed: Tensor, arguments: Mapping[str, Any], attention: Callable[..., Any] | None = None
    ) -> Tensor:
        """A of an input that is already normalised, shape (batch, tokens, width).

        Args:
            normed: N1 x.
            arguments: What else the layer was called with.
            attention: What runs in the place of the attention, such as a twin of it.
        """
        return self._scaled(0, self._run(self._anatomy.after_attention, self.attend(normed, arguments, attention)))

    def attend(
        self, normed: Tensor, arguments: Mapping[str, Any], attention: Callable[..., Any] | None = None
    ) -> Tensor:
        """The attention without the norm after it and its scale; see `run_attention`."""
        module = self.attention if attention is None else attention
        return first(module(normed, **self.attention_arguments(arguments)))

    def attention_norm(self, x: Tensor) -> Tensor:
        """N1 x, the input of the attention."""
        return self._run(self._anatomy.before_attention, x)

    def ffn_norm(self, x: Tensor) -> Tensor:
        """N2 x, the input of the FFN."""
        return self._run(self._anatomy.before_ffn, x)

    def run_ffn(
        self,
        normed: Tensor,
        arguments: Mapping[str, Any] | None = None,
        parts: Mapping[str, nn.Module] | None = None,
    ) -> Tensor:
        """F of an input that is already normalised, shape (batch, tokens, width).

        Args:
            normed: N2 x, or N1 x where both sublayers share that norm.
            arguments: What else the layer was called with; they tell a `cross` layer which rows see no image.
            parts: Modules that run in the place of the FFN's own, by their names in the layer.
        """
        normed = first(self._run(self._anatomy.after_ffn, self.run_ffn_modules(normed, parts)))
        if self._anatomy.rows is not None:
            rows = (arguments or {})[self._anatomy.rows]
            normed = normed if rows is None else rows[:, 0] * normed
        return self._scaled(1, normed)

    def run_ffn_modules(self, normed: Tensor, parts: Mapping[str, nn.Module] | None = None) -> Tensor:
        """The FFN without the norm after it, its scale and its rows; see `run_ffn`."""
        for name in self._anatomy.ffn:
            normed = first(parts[name](normed) if parts and name in parts else self._run(name, normed))
        return normed

    def as_layer_output(self, y: Tensor) -> Any:
        """Hidden states in the form that the layer returns: alone, or first in a tuple."""
        return y if self._tuple_length is None else (y, *(None,) * (self._tuple_length - 1))

    def _run(self, name: str | None, x: Tensor) -> Tensor:
        # Looked up at each call, because a part may be replaced in between, for example to quantise it.
        return x if name is None else getattr(self._layer, name)(x)

    def _scaled(self, sublayer: int, x: Tensor) -> Tensor:
        if self._anatomy.scales is None:
            return x
        scale = getattr(self._layer, self._anatomy.scales[sublayer])
        return x * (scale.tanh() if isinstance(scale, Tensor) else scale)

    def attention_arguments(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The layer's arguments that the attention accepts, under the attention's names."""
        renamed = dict(arguments)
        for in_attention, in_layer in self._renamed:
            renamed[in_attention] = renamed.pop(in_layer, None)
        return renamed if self._accepted is None else {k: v for k, v in renamed.items() if k in self._accepted}
