"""Finding the decoder layers of a model, and the sublayers of a layer, for every family that we know how to wrap."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .errors import ModelError


@dataclass(frozen=True)
class Anatomy:
    """Where a kind of decoder layer keeps its parts, as attribute names.

    Attributes:
        attention: The attention sublayer.
        ffn: The modules of the feed-forward sublayer, in the order they run.
        before_attention: The norm that feeds the attention.
        before_ffn: The norm that feeds the FFN.
        after_attention: A norm on the attention's output, which belongs to the sublayer.
        after_ffn: The same for the FFN.
        parallel_flag: The attribute that says whether both sublayers read the layer's input.
    """

    attention: str
    ffn: tuple[str, ...]
    before_attention: str
    before_ffn: str
    after_attention: str | None = None
    after_ffn: str | None = None
    parallel_flag: str | None = None

    def fits(self, layer: nn.Module) -> bool:
        """True where the layer has every part."""
        names = (
            self.attention,
            *self.ffn,
            self.before_attention,
            self.before_ffn,
            self.after_attention,
            self.after_ffn,
        )
        return all(hasattr(layer, name) for name in (*names, self.parallel_flag) if name is not None)


# The first that fits is taken, and then proven against the layer itself, so a wrong guess is refused, never used.
ANATOMIES = (
    # Gemma 2 and 3: norms before and after each sublayer.
    Anatomy(
        attention="self_attn",
        ffn=("mlp",),
        before_attention="input_layernorm",
        after_attention="post_attention_layernorm",
        before_ffn="pre_feedforward_layernorm",
        after_ffn="post_feedforward_layernorm",
    ),
    # Llama, Mistral, Qwen and most of the field: norms before each sublayer.
    Anatomy("self_attn", ("mlp",), before_attention="input_layernorm", before_ffn="post_attention_layernorm"),
    # OPT: the FFN's two matrices stand in the layer itself.
    Anatomy(
        "self_attn",
        ("fc1", "activation_fn", "fc2"),
        before_attention="self_attn_layer_norm",
        before_ffn="final_layer_norm",
    ),
    # GPT-NeoX and Pythia: both sublayers read the layer's input.
    Anatomy(
        "attention",
        ("mlp",),
        before_attention="input_layernorm",
        before_ffn="post_attention_layernorm",
        parallel_flag="use_parallel_residual",
    ),
)


class Sublayers:
    """The attention and the FFN of one decoder layer, each with the norms that belong to it.

    Args:
        layer: The decoder layer.
        anatomy: Where its parts are.
    """

    def __init__(self, layer: nn.Module, anatomy: Anatomy) -> None:
        self._layer = layer
        self._anatomy = anatomy

    @property
    def attention(self) -> nn.Module:
        """The attention, without its norms."""
        return getattr(self._layer, self._anatomy.attention)

    @property
    def parallel(self) -> bool:
        """True where both sublayers read the layer's input."""
        flag = self._anatomy.parallel_flag
        return flag is not None and bool(getattr(self._layer, flag))

    def attend(self, x: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """A(N1 x) of shape (batch, tokens, width), with the arguments that the layer was called with."""
        out = self.attention(self._run(self._anatomy.before_attention, x), **arguments)[0]
        return self._run(self._anatomy.after_attention, out)

    def feed(self, x: Tensor) -> Tensor:
        """F(N2 x) of shape (batch, tokens, width)."""
        for name in (self._anatomy.before_ffn, *self._anatomy.ffn, self._anatomy.after_ffn):
            x = self._run(name, x)
        return x

    def _run(self, name: str | None, x: Tensor) -> Tensor:
        # Looked up at each call: the owner of the model may replace a part, to quantise it for example.
        return x if name is None else getattr(self._layer, name)(x)


@dataclass(frozen=True)
class DecoderLayer:
    """A decoder layer that can be wrapped.

    Attributes:
        index: Its 0-based number, which is also its place in the cache.
        module: The layer itself.
        sublayers: Its parts.
        parameters: The names of its forward's parameters, to name what is passed by position.
    """

    index: int
    module: nn.Module
    sublayers: Sublayers
    parameters: tuple[str, ...]


UNKNOWN = "this model family is not supported; add its anatomy to skipsearch/policies/layers.py"

_proven: "WeakKeyDictionary[nn.Module, tuple[DecoderLayer, ...]]" = WeakKeyDictionary()


def decoder_layers(model: PreTrainedModel) -> tuple[DecoderLayer, ...]:
    """The decoder layers of a model, each proven once: its parts put together equal the layer on random input.

    Raises:
        ModelError: the model has no layers we can find, or they are of a kind that we cannot take apart.
    """
    decoder, modules = model.get_decoder(), layer_modules(model)
    layers = _proven.get(decoder)
    if layers is None or [layer.module for layer in layers] != modules:
        layers = tuple(take_apart(model, index, module) for index, module in enumerate(modules))
        prove(model, decoder, layers)
        _proven[decoder] = layers
    return layers


def layer_modules(model: PreTrainedModel) -> list[nn.Module]:
    """The modules of the decoder layers, first to last.

    Raises:
        ModelError: `model.get_decoder()` has no list `layers`, or its layers use each other's keys and values.
    """
    if getattr(model.config.get_text_config(), "num_kv_shared_layers", 0):
        raise ModelError(
            f"the layers of {type(model).__name__} share keys and values, so none can be skipped alone",
            [f"num_kv_shared_layers is {model.config.get_text_config().num_kv_shared_layers}, expected 0"],
            "use a model whose layers each have their own",
        )
    layers = getattr(model.get_decoder(), "layers", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        lists = [f"{name} ({len(part)})" for name, part in model.named_modules() if isinstance(part, nn.ModuleList)]
        raise ModelError(
            f"no decoder layers found in {type(model).__name__}",
            [f"looked at get_decoder().layers; module lists present: {', '.join(lists) or 'none'}"],
            "skipsearch wraps decoder models whose layers are a list named `layers`",
        )
    return list(layers)


def take_apart(model: PreTrainedModel, index: int, layer: nn.Module) -> DecoderLayer:
    """Find the sublayers of a layer.

    Raises:
        ModelError: no known anatomy fits.
    """
    anatomy = next((anatomy for anatomy in ANATOMIES if anatomy.fits(layer)), None)
    if anatomy is None:
        children = ", ".join(name for name, _ in layer.named_children())
        raise ModelError(
            f"the layers of {type(model).__name__} cannot be taken apart",
            [f"layer {index} is a {type(layer).__name__} with the parts {children}"],
            UNKNOWN,
        )
    names = tuple(inspect.signature(type(layer).forward).parameters)[1:]
    return DecoderLayer(index, layer, Sublayers(layer, anatomy), names)


def prove(model: PreTrainedModel, decoder: nn.Module, layers: tuple[DecoderLayer, ...]) -> None:
    """Run the decoder on random input, and compare each layer with its own parts put together.

    Raises:
        ModelError: they differ, so this family computes something that its parts do not show.
    """
    seen: dict[int, tuple[Tensor, dict[str, Any], Any]] = {}

    def keep(layer: DecoderLayer) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            named = dict(zip(layer.parameters, args, strict=False)) | kwargs
            seen[layer.index] = named.pop("hidden_states"), named, output

        return hook

    hooks = [layer.module.register_forward_hook(keep(layer), with_kwargs=True) for layer in layers]
    modes = {module: module.training for module in decoder.modules()}
    decoder.eval()
    try:
        with torch.no_grad():
            decoder(inputs_embeds=random_embeddings(model), use_cache=False)
            wrong = [layer for layer in layers if layer.index not in seen or not matches(layer, *seen[layer.index])]
    except torch.OutOfMemoryError:
        raise
    except Exception as cause:
        # Whatever a family that we do not know raises, the user needs to read that it is not supported.
        reason = f"{type(cause).__name__}: {cause}".splitlines()[0]
        raise ModelError(f"the layers of {type(model).__name__} cannot be checked", [reason], UNKNOWN) from cause
    finally:
        for module, training in modes.items():
            module.training = training
        for hook in hooks:
            hook.remove()
    if wrong:
        raise ModelError(
            f"the layers of {type(model).__name__} compute something that their sublayers do not show",
            [f"layer {layer.index} ({type(layer.module).__name__}) differs from its own parts" for layer in wrong[:3]],
            UNKNOWN,
        )


def random_embeddings(model: PreTrainedModel) -> Tensor:
    """Five random token embeddings, drawn without touching the global random state; shape (1, 5, width)."""
    weight: Any = model.get_input_embeddings().weight
    width = model.config.get_text_config().hidden_size
    width = weight.shape[-1] if weight.shape[-1] else width
    noise = torch.randn(1, 5, width, generator=torch.Generator().manual_seed(0))
    device = weight.device if weight.device.type != "meta" else torch.device("cpu")
    return noise.to(device=device, dtype=weight.dtype)


def matches(layer: DecoderLayer, x: Tensor, arguments: dict[str, Any], output: Any) -> bool:
    """True where the composed layer gives the layer's own output, up to rounding."""
    if not isinstance(output, Tensor):
        return False
    parts = layer.sublayers
    attended = x + parts.attend(x, arguments)
    composed = attended + parts.feed(x if parts.parallel else attended)
    error = (composed - output).float().norm() / output.float().norm().clamp_min(1e-12)
    return bool(error < (1e-4 if output.dtype in (torch.float32, torch.float64) else 3e-2))
