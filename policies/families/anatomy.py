"""The parts of decoder layers: a table of how families name and combine them, and the sublayers made of them."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

from torch import Tensor, nn

Kind = Literal["attention", "linear", "cross"]

# The names that layers, attentions and linear mixers give to their cache argument.
CACHE_ARGUMENTS = ("cache", "past_key_values", "past_key_value", "layer_past", "cache_params")

# Arguments of a layer that have an entry for each token, and the axis that runs over tokens.
PER_TOKEN = {"position_embeddings": -2, "position_ids": -1}


@dataclass(frozen=True)
class Anatomy:
    """The attribute names of a decoder layer's parts, and how the layer combines them.

    Attributes:
        attention: The token mixer: an attention, or a recurrence or convolution in its place.
        ffn: The modules of the feed-forward sublayer, in the order they run.
        before_attention: The norm that feeds the attention; None where the attention reads the residual stream itself.
        before_ffn: The norm that feeds the FFN; None where the FFN reads the residual stream itself.
        after_attention: A norm on the attention's output, which belongs to the sublayer.
        after_ffn: A norm on the FFN's output, which belongs to the sublayer.
        scales: Factors of the two sublayers' outputs: numbers, or gate parameters, of which the tanh is taken.
        parallel: True where both sublayers read the layer's input.
        kind: `attention` (stores keys and values), `linear` (a recurrence or convolution), or `cross` (attention to an
            image).
        renamed: Arguments of the attention with another name in the layer: pairs of (attention's name, layer's name).
        rows: The argument that multiplies the FFN's output, row by row.
    """

    attention: str
    ffn: tuple[str, ...]
    before_attention: str | None = None
    before_ffn: str | None = None
    after_attention: str | None = None
    after_ffn: str | None = None
    scales: tuple[str, str] | None = None
    parallel: bool = False
    kind: Kind = "attention"
    renamed: tuple[tuple[str, str], ...] = ()
    rows: str | None = None

    def fits(self, layer: nn.Module) -> bool:
        """True where a layer has exactly these parts, no further weights, and a mixer of this kind."""
        norms = (self.before_attention, self.before_ffn, self.after_attention, self.after_ffn)
        names = {name for name in (self.attention, *self.ffn, *norms, *(self.scales or ())) if name is not None}
        weights = {name.split(".")[0] for name, _ in chain(layer.named_parameters(), layer.named_buffers())}
        if not weights <= names or any(getattr(layer, name, None) is None for name in names):
            return False
        argument = cache_argument(getattr(layer, self.attention))
        return argument is not None and (self.kind == "linear" or argument != "cache_params")


# Several may fit a layer. They are tried in order; the first that reproduces the layer's own output is taken.
ANATOMIES = (
    # Gemma 2 and 3: norms before and after each sublayer.
    Anatomy(
        "self_attn",
        ("mlp",),
        "input_layernorm",
        "pre_feedforward_layernorm",
        "post_attention_layernorm",
        "post_feedforward_layernorm",
    ),
    # GLM-4 and GLM-4V: the same, under other names.
    Anatomy(
        "self_attn",
        ("mlp",),
        "input_layernorm",
        "post_attention_layernorm",
        "post_self_attn_layernorm",
        "post_mlp_layernorm",
    ),
    # Granite: the outputs of the sublayers are scaled.
    Anatomy(
        "self_attn",
        ("mlp",),
        "input_layernorm",
        "post_attention_layernorm",
        scales=("residual_multiplier", "residual_multiplier"),
    ),
    # Granite's mixture of experts.
    Anatomy(
        "self_attn",
        ("block_sparse_moe",),
        "input_layernorm",
        "post_attention_layernorm",
        scales=("residual_multiplier", "residual_multiplier"),
    ),
    # Granite 4 without experts: attention, or Mamba.
    Anatomy(
        "self_attn",
        ("shared_mlp",),
        "input_layernorm",
        "post_attention_layernorm",
        scales=("residual_multiplier", "residual_multiplier"),
    ),
    Anatomy(
        "mamba",
        ("shared_mlp",),
        "input_layernorm",
        "post_attention_layernorm",
        scales=("residual_multiplier", "residual_multiplier"),
        kind="linear",
    ),
    # MiniCPM 3.
    Anatomy(
        "self_attn",
        ("mlp",),
        "input_layernorm",
        "post_attention_layernorm",
        scales=("residual_scale", "residual_scale"),
    ),
    # Llama, Mistral, Qwen and most other families: a norm before each sublayer.
    Anatomy("self_attn", ("mlp",), "input_layernorm", "post_attention_layernorm"),
    # Gated DeltaNet in Qwen3-Next and Qwen3.5.
    Anatomy("linear_attn", ("mlp",), "input_layernorm", "post_attention_layernorm", kind="linear"),
    # OLMo 2 and 3, EXAONE 4: a norm after each sublayer only.
    Anatomy(
        "self_attn",
        ("mlp",),
        after_attention="post_attention_layernorm",
        after_ffn="post_feedforward_layernorm",
    ),
    # Molmo 2 with `norm_after`.
    Anatomy(
        "self_attn",
        ("mlp",),
        after_attention="input_layernorm",
        after_ffn="post_attention_layernorm",
    ),
    # Cohere, Phi, StableLM with `use_parallel_residual`: one norm feeds both sublayers.
    Anatomy("self_attn", ("mlp",), "input_layernorm", "input_layernorm", parallel=True),
    # LFM 2: attention, or a short convolution.
    Anatomy("self_attn", ("feed_forward",), "operator_norm", "ffn_norm"),
    Anatomy("conv", ("feed_forward",), "operator_norm", "ffn_norm", kind="linear"),
    # Bamba and Jamba: attention, or Mamba.
    Anatomy("self_attn", ("feed_forward",), "input_layernorm", "pre_ff_layernorm"),
    Anatomy("mamba", ("feed_forward",), "input_layernorm", "pre_ff_layernorm", kind="linear"),
    # Llama 4.
    Anatomy("self_attn", ("feed_forward",), "input_layernorm", "post_attention_layernorm"),
    # Mllama: cross-attention to the image, a gate on each sublayer; rows that see no image have no FFN.
    Anatomy(
        "cross_attn",
        ("mlp",),
        "input_layernorm",
        "post_attention_layernorm",
        scales=("cross_attn_attn_gate", "cross_attn_mlp_gate"),
        kind="cross",
        renamed=(("attention_mask", "cross_attention_mask"),),
        rows="full_text_row_masked_out_mask",
    ),
    # OPT: the two matrices of the FFN are attributes of the layer itself.
    Anatomy("self_attn", ("fc1", "activation_fn", "fc2"), "self_attn_layer_norm", "final_layer_norm"),
    # GPT-NeoX and Pythia, with `use_parallel_residual` and without.
    Anatomy("attention", ("mlp",), "input_layernorm", "post_attention_layernorm", parallel=True),
    Anatomy("attention", ("mlp",), "input_layernorm", "post_attention_layernorm"),
    # GPT-2; GPT-J and CodeGen.
    Anatomy("attn", ("mlp",), "ln_1", "ln_2"),
    Anatomy("attn", ("mlp",), "ln_1", "ln_1", parallel=True),
    # Falcon: the new decoder architecture, and the old one, sequential or parallel.
    Anatomy("self_attention", ("mlp",), "ln_attn", "ln_mlp", parallel=True),
    Anatomy("self_attention", ("mlp",), "input_layernorm", "post_attention_layernorm"),
    Anatomy("self_attention", ("mlp",), "input_layernorm", "input_layernorm", parallel=True),
)


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


def parameters(module: nn.Module) -> Mapping[str, inspect.Parameter]:
    """The parameters of a module's forward by name, `self` first."""
    return inspect.signature(type(module).forward).parameters


def cache_argument(module: nn.Module) -> str | None:
    """The name of a module's cache argument; None where it takes no cache."""
    return next((name for name in CACHE_ARGUMENTS if name in parameters(module)), None)


def first(output: Any) -> Tensor:
    """The hidden states among a module's outputs, which may also hold attention weights or router logits."""
    return output[0] if isinstance(output, tuple) else output
