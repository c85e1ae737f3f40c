"""How the decoder layers of each family are put together: a table of their parts, and the sublayers made of these."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

from torch import Tensor, nn

Kind = Literal["attention", "linear", "cross"]

# What a layer, an attention or a linear mixer calls the cache that it is given.
CACHES = ("cache", "past_key_values", "past_key_value", "layer_past", "cache_params")


@dataclass(frozen=True)
class Anatomy:
    """Where a kind of decoder layer keeps its parts, as attribute names, and how it adds them up.

    Attributes:
        attention: What mixes tokens: an attention, or what stands in its place.
        ffn: The modules of the feed-forward sublayer, in the order they run.
        before_attention: The norm that feeds the attention; None where the attention reads the stream as it is.
        before_ffn: The same for the FFN.
        after_attention: A norm on the attention's output, which belongs to the sublayer.
        after_ffn: The same for the FFN.
        scales: What the outputs of both sublayers are multiplied by: numbers, or parameters whose tanh is the gate.
        parallel: True where both sublayers read the layer's input.
        kind: Self-attention with keys and values; a linear (recurrent or convolutional) mixer; attention to an image.
        renamed: Arguments of the attention that the layer is given under another name.
        rows: The argument by which the FFN's output is multiplied.
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
        """True where the layer has these parts, its mixer is one of this kind, and no weights are left over."""
        norms = (self.before_attention, self.before_ffn, self.after_attention, self.after_ffn)
        names = {name for name in (self.attention, *self.ffn, *norms, *(self.scales or ())) if name is not None}
        weights = {name.split(".")[0] for name, _ in chain(layer.named_parameters(), layer.named_buffers())}
        if not weights <= names or any(getattr(layer, name, None) is None for name in names):
            return False
        stored = cache_name(getattr(layer, self.attention))
        return stored is not None and (self.kind == "linear" or stored != "cache_params")


# Several may fit a layer. They are tried in order, and the first that gives the layer's own output is taken.
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
    # Granite: what the sublayers add is scaled.
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
    # Llama, Mistral, Qwen and most of the field: norms before each sublayer.
    Anatomy("self_attn", ("mlp",), "input_layernorm", "post_attention_layernorm"),
    # Gated DeltaNet in Qwen3-Next and Qwen3.5.
    Anatomy("linear_attn", ("mlp",), "input_layernorm", "post_attention_layernorm", kind="linear"),
    # OLMo 2 and 3, EXAONE 4: norms after each sublayer only.
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
    # Mllama: attention to the image, each sublayer behind a gate; rows that see no image have no FFN.
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
    # OPT: the FFN's two matrices stand in the layer itself.
    Anatomy("self_attn", ("fc1", "activation_fn", "fc2"), "self_attn_layer_norm", "final_layer_norm"),
    # GPT-NeoX and Pythia: both sublayers read the layer's input, or not.
    Anatomy("attention", ("mlp",), "input_layernorm", "post_attention_layernorm", parallel=True),
    Anatomy("attention", ("mlp",), "input_layernorm", "post_attention_layernorm"),
    # GPT-2; GPT-J and CodeGen.
    Anatomy("attn", ("mlp",), "ln_1", "ln_2"),
    Anatomy("attn", ("mlp",), "ln_1", "ln_1", parallel=True),
    # Falcon: its newer layers, its older ones one after the other, and side by side.
    Anatomy("self_attention", ("mlp",), "ln_attn", "ln_mlp", parallel=True),
    Anatomy("self_attention", ("mlp",), "input_layernorm", "post_attention_layernorm"),
    Anatomy("self_attention", ("mlp",), "input_layernorm", "input_layernorm", parallel=True),
)


class Sublayers:
    """The attention and the FFN of one decoder layer, each with the norms that belong to it.

    With A and F the sublayers (what they add to the stream, scales included) and N1 and N2 the norms that feed them, a
    layer is x' = x + A(N1 x), y = x' + F(N2 x'), or where it is parallel y = x + A(N1 x) + F(N2 x).

    Args:
        layer: The decoder layer.
        anatomy: Where its parts are.
        output: What the layer returned when it was observed.
    """

    def __init__(self, layer: nn.Module, anatomy: Anatomy, output: Any) -> None:
        self._layer = layer
        self._anatomy = anatomy
        self._returns = len(output) if isinstance(output, tuple) else None
        # Looked up once: the forward may be compiled, and whoever replaces an attention keeps its arguments.
        accepted = parameters(self.attention)
        takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
        self._accepted = None if takes_all else frozenset(accepted)
        self._renamed = anatomy.renamed
        if (ours := cache_name(layer)) != (theirs := cache_name(self.attention)) and ours and theirs:
            self._renamed += ((theirs, ours),)

    @property
    def attention(self) -> nn.Module:
        """The attention, or the mixer in its place, without its norms."""
        return getattr(self._layer, self._anatomy.attention)

    @property
    def parallel(self) -> bool:
        """True where both sublayers read the layer's input."""
        return self._anatomy.parallel

    @property
    def kind(self) -> Kind:
        """`attention`, `linear` or `cross`; see `Anatomy`."""
        return self._anatomy.kind

    def attend(self, x: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """A(N1 x) of shape (batch, tokens, width), with the arguments that the layer was called with."""
        return self.mix(self.normalise_shared(x), arguments)

    def mix(self, normed: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """A of an input that is already normalised, shape (batch, tokens, width)."""
        out = first(self.attention(normed, **self._passed(arguments)))
        return self._scaled(0, self._run(self._anatomy.after_attention, out))

    def normalise_shared(self, x: Tensor) -> Tensor:
        """N1 x, the norm that feeds the attention."""
        return self._run(self._anatomy.before_attention, x)

    def normalise(self, x: Tensor) -> Tensor:
        """N2 x, the norm that feeds the FFN."""
        return self._run(self._anatomy.before_ffn, x)

    def feed(self, normed: Tensor, arguments: Mapping[str, Any] | None = None) -> Tensor:
        """F of an input that is already normalised, shape (batch, tokens, width).

        Args:
            normed: N2 x or N1 x.
            arguments: What the layer was called with; a `cross` layer needs to know which rows see no image.
        """
        for name in (*self._anatomy.ffn, self._anatomy.after_ffn):
            normed = first(self._run(name, normed))
        if self._anatomy.rows is not None:
            rows = (arguments or {})[self._anatomy.rows]
            normed = normed if rows is None else rows[:, 0] * normed
        return self._scaled(1, normed)

    def returned(self, y: Tensor) -> Any:
        """The layer's output as the layer returns it: alone, or first in a tuple."""
        return y if self._returns is None else (y, *(None,) * (self._returns - 1))

    def _run(self, name: str | None, x: Tensor) -> Tensor:
        # Looked up at each call: the owner of the model may replace a part, to quantise it for example.
        return x if name is None else getattr(self._layer, name)(x)

    def _scaled(self, sublayer: int, x: Tensor) -> Tensor:
        if self._anatomy.scales is None:
            return x
        scale = getattr(self._layer, self._anatomy.scales[sublayer])
        return x * (scale.tanh() if isinstance(scale, Tensor) else scale)

    def _passed(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of the attention, under its own names."""
        passed = dict(arguments)
        for name, given in self._renamed:
            passed[name] = passed.pop(given, None)
        return passed if self._accepted is None else {k: v for k, v in passed.items() if k in self._accepted}


def parameters(module: nn.Module) -> Mapping[str, inspect.Parameter]:
    """The parameters of a module's forward by name, `self` first."""
    return inspect.signature(type(module).forward).parameters


def cache_name(module: nn.Module) -> str | None:
    """What a layer or its attention calls the cache; None where it takes none."""
    return next((name for name in CACHES if name in parameters(module)), None)


def first(output: Any) -> Tensor:
    """What a module returns, without the weights or routes that it may return with it."""
    return output[0] if isinstance(output, tuple) else output
