"""Finding the decoder layers of a model, and checking that their known parts compute what the layers compute."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import ModelError
from ..quantized.tensors import plain_tensors
from .anatomy import ANATOMIES, Kind, first, parameters
from .model_errors import is_out_of_memory
from .sublayers import Sublayers
from .twins import Twins


@dataclass(frozen=True)
class RecordedCall:
    """One recorded call of a layer.

    Attributes:
        x: The hidden states that enter it, shape (batch, tokens, width).
        arguments: All other arguments, by name.
        output: What it returned.
    """

    x: Tensor
    arguments: dict[str, Any]
    output: Any


@dataclass(frozen=True)
class DecoderLayer:
    """A decoder layer that can be wrapped.

    Attributes:
        index: Its 0-based place in the list of layers.
        module: The layer itself.
        sublayers: Its attention and its FFN.
        parameters: The names of its forward's parameters, which name positional arguments.
        twins: What its attention can do for tokens that do not take part in full.
        hands_on: True where the decoder gives what the layer returns to the next one as it is.
        call: Random input that the decoder called it with, and no output; None where it was not recorded.
    """

    index: int
    module: nn.Module
    sublayers: Sublayers
    parameters: tuple[str, ...]
    twins: Twins = Twins()
    hands_on: bool = False
    call: RecordedCall | None = field(default=None, compare=False, repr=False)

    @property
    def kind(self) -> Kind:
        """`attention`, `linear` or `cross`; see `Anatomy`."""
        return self.sublayers.kind

    @property
    def slot(self) -> int:
        """The number under which its attention stores in a cache; differs from `index` where layers were removed."""
        number = getattr(self.sublayers.attention, "layer_idx", None)
        return self.index if number is None else number


UNSUPPORTED = "this model family is not supported; add its anatomy to skipsearch/policies/families/anatomy.py"
# The names that decoders give to the list of their layers.
LAYER_LISTS = ("layers", "h")

# The attribute of a decoder layer that holds the handle of the policy that its model runs under.
HANDLE = "_skipsearch_policy"

# By decoder, its layers while no policy is applied: a patched layer leads to its model, and would keep it alive here.
_verified: "WeakKeyDictionary[nn.Module, tuple[DecoderLayer, ...]]" = WeakKeyDictionary()


def decoder_layers(model: PreTrainedModel) -> tuple[DecoderLayer, ...]:
    """The decoder layers of a model, each verified once: its composed parts reproduce its output on random input.

    Raises:
        ModelError: no decoder layers are found, or no known anatomy reproduces them.
    """
    decoder, modules = model.get_decoder(), list(layer_list(model))
    handle = vars(modules[0]).get(HANDLE) if modules else None
    layers = _verified.get(decoder) if handle is None else handle.layers
    if layers is None or [layer.module for layer in layers] != modules:
        layers = _verified[decoder] = verify_layers(model, modules)
    check_slots(type(model).__name__, layers)
    return layers


def leave_to_handle(model: PreTrainedModel) -> None:
    """Forget the layers of a model that has a handle, which holds them as long as the policy is applied."""
    _verified.pop(model.get_decoder(), None)


def take_back(model: PreTrainedModel, layers: tuple[DecoderLayer, ...]) -> None:
    """Remember the layers of a model whose policy was removed, so that the next one need not verify them again."""
    _verified[model.get_decoder()] = layers


def check_slots(name: str, layers: Sequence[DecoderLayer]) -> None:
    """Refuse layers of which two share a cache slot, or none has slot 0, from which transformers reads lengths.

    Raises:
        ModelError: with the slots of the layers.
    """
    slots = [layer.slot for layer in layers]
    if len(set(slots)) < len(slots) or slots[0] != 0:
        raise ModelError(
            f"the layers of {name} do not fit its cache",
            [f"found the numbers {', '.join(map(str, slots))}, expected 0 first and no number twice"],
            "number them anew: `layer.self_attn.layer_idx = place` for each layer in its place",
        )


def layer_list(model: PreTrainedModel) -> nn.ModuleList:
    """The model's list of decoder layers, first to last.

    Raises:
        ModelError: the decoder has no such list, or its layers share keys and values.
    """
    if getattr(model.config.get_text_config(), "num_kv_shared_layers", 0):
        raise ModelError(
            f"the layers of {type(model).__name__} share keys and values, so none can be skipped alone",
            [f"num_kv_shared_layers is {model.config.get_text_config().num_kv_shared_layers}, expected 0"],
            "use a model whose layers each have their own",
        )
    found = (getattr(model.get_decoder(), name, None) for name in LAYER_LISTS)
    layers = next((layers for layers in found if isinstance(layers, nn.ModuleList) and len(layers)), None)
    if layers is None:
        expected = " or ".join(f"`{name}`" for name in LAYER_LISTS)
        lists = [f"{name} ({len(part)})" for name, part in model.named_modules() if isinstance(part, nn.ModuleList)]
        raise ModelError(
            f"no decoder layers found in {type(model).__name__}",
            [f"looked for {expected} in get_decoder(); module lists present: {', '.join(lists) or 'none'}"],
            f"use a decoder model whose layers are a list named {expected}",
        )
    return layers


def verify_layers(model: PreTrainedModel, modules: list[nn.Module]) -> tuple[DecoderLayer, ...]:
    """Run the decoder on random input, and compare the output of each layer with that of its composed parts.

    Raises:
        ModelError: a layer has unknown parts, or computes something that its parts do not reproduce.
    """
    name = type(model).__name__
    calls: dict[nn.Module, RecordedCall] = {}
    try:
        with recorded_calls(modules, calls), eval_mode(model.get_decoder()), torch.no_grad():
            model.get_decoder()(**random_input(model), use_cache=False)
            found = [match_anatomy(name, index, module, calls) for index, module in enumerate(modules)]
            found = [layer and replace(layer, hands_on=is_handed_on(layer, modules, calls)) for layer in found]
    except ModelError:
        raise
    except Exception as cause:
        if is_out_of_memory(cause):
            raise
        # The forward of an unknown family can raise anything; each error means that the family is not supported.
        reason = f"{type(cause).__name__}: {cause}".splitlines()[0]
        raise ModelError(f"the layers of {name} cannot be checked", [reason], UNSUPPORTED) from cause
    layers = tuple(layer for layer in found if isinstance(layer, DecoderLayer))
    if len(layers) < len(modules):
        check_finite(model, modules, calls)
        wrong = [index for index, layer in enumerate(found) if layer is None]
        raise ModelError(
            f"the layers of {name} compute something that their sublayers do not show",
            [f"layer {index} ({type(modules[index]).__name__}) differs from its own parts" for index in wrong[:3]],
            UNSUPPORTED,
        )
    return layers


def check_finite(model: PreTrainedModel, modules: list[nn.Module], calls: dict[nn.Module, RecordedCall]) -> None:
    """Refuse a model with weights or layer outputs that are NaN or infinite.

    Raises:
        ModelError: naming the weights, or the first such layer.
    """
    refuse_infinite(model)
    outputs = [first(calls[module].output) if module in calls else None for module in modules]
    wrong = (n for n, output in enumerate(outputs) if isinstance(output, Tensor) and not output.isfinite().all())
    index = next(wrong, None)
    if index is not None:
        raise ModelError(
            f"layer {index} of {type(model).__name__} computes numbers that are not finite",
            [f"found NaN or infinity after it, on random input in {outputs[index].dtype}"],  # type: ignore[union-attr]
            "load the model in a dtype of larger range, such as bfloat16 or float32",
        )


def refuse_infinite(model: nn.Module) -> None:
    """Refuse a model with weights that are NaN or infinite.

    Raises:
        ModelError: naming them.
    """
    weights = ((name, weight) for name, weight in model.named_parameters() if weight.is_floating_point())
    wrong = [name for name, weight in weights if not is_finite(weight)]
    if wrong:
        raise ModelError(
            f"{len(wrong)} weights of {type(model).__name__} are not finite",
            [f"{name} has NaN or infinite numbers" for name in wrong[:5]],
            "the checkpoint is damaged, or it overflowed when it was converted; load another one",
        )


def is_finite(weight: Tensor) -> bool:
    """True where no number of a tensor is NaN or infinite, nor a scale of a quantised one; makes no copy."""
    return all(is_plain_finite(part) for part in plain_tensors(weight) if part.is_floating_point())


def is_plain_finite(weight: Tensor) -> bool:
    """True where no number of a plain tensor is NaN or infinite."""
    if weight.is_meta or not weight.numel():
        return True
    try:
        ends = torch.stack(torch.aminmax(weight.detach()))
    except RuntimeError:  # torch cannot compare some dtypes, such as 8-bit floats
        return True
    return bool(ends.isfinite().all())


def match_anatomy(
    name: str, index: int, module: nn.Module, calls: dict[nn.Module, RecordedCall]
) -> DecoderLayer | None:
    """Find the sublayers that reproduce a layer's output; None where no fitting anatomy does.

    Raises:
        ModelError: no known anatomy has the layer's parts.
    """
    fitting = [anatomy for anatomy in ANATOMIES if anatomy.fits(module)]
    if not fitting:
        own = chain(
            module.named_children(), module.named_parameters(recurse=False), module.named_buffers(recurse=False)
        )
        raise ModelError(
            f"the layers of {name} cannot be taken apart",
            [f"layer {index} is a {type(module).__name__} with the parts {', '.join(part for part, _ in own)}"],
            UNSUPPORTED,
        )
    if module not in calls:
        return None
    call = calls[module]
    for anatomy in fitting:
        sublayers = Sublayers(module, anatomy, call.output)
        if reproduces(sublayers, call):
            twins = Twins.of(sublayers, call.x, call.arguments)
            recorded = replace(call, output=None)
            return DecoderLayer(index, module, sublayers, argument_names(module), twins, call=recorded)
    return None


def is_handed_on(layer: DecoderLayer, modules: list[nn.Module], calls: dict[nn.Module, RecordedCall]) -> bool:
    """True where the next layer was called with the very tensor that a layer returned."""
    following = calls.get(modules[layer.index + 1]) if layer.index + 1 < len(modules) else None
    return following is not None and following.x is first(calls[layer.module].output)


def argument_names(module: nn.Module) -> tuple[str, ...]:
    """The names of the arguments of a module's forward, in order."""
    return tuple(parameters(module))[1:]


@contextmanager
def recorded_calls(modules: list[nn.Module], calls: dict[nn.Module, RecordedCall]) -> Iterator[None]:
    """Record the last call of each module in this context, and what it returned."""

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        named = dict(zip(argument_names(module), args, strict=False)) | kwargs
        calls[module] = RecordedCall(named.pop("hidden_states"), named, output)

    hooks = [module.register_forward_hook(record, with_kwargs=True) for module in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def eval_mode(decoder: nn.Module) -> Iterator[None]:
    """Put a decoder into evaluation mode in this context, then restore the mode of each module."""
    modes = {module: module.training for module in decoder.modules()}
    decoder.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def random_input(model: PreTrainedModel) -> dict[str, Tensor]:
    """Random input for a decoder: five token embeddings, shape (1, 5, width); leaves the global random state alone.

    A decoder with cross-attention also gets random image states, and a mask of the tokens that see them.
    """
    weight: Any = model.get_input_embeddings().weight
    width = model.config.get_text_config().hidden_size
    width = weight.shape[-1] if weight.shape[-1] else width
    device = weight.device if weight.device.type != "meta" else torch.device("cpu")
    generator = torch.Generator().manual_seed(0)
    drawn = {"inputs_embeds": torch.randn(1, 5, width, generator=generator)}
    if "cross_attention_states" in argument_names(model.get_decoder()):
        drawn["cross_attention_states"] = torch.randn(1, 5, width, generator=generator)
        drawn["full_text_row_masked_out_mask"] = torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0]).view(1, 1, 5, 1)
    return {name: tensor.to(device=device, dtype=weight.dtype) for name, tensor in drawn.items()}


def reproduces(parts: Sublayers, call: RecordedCall) -> bool:
    """True where the composed parts give the layer's recorded output, up to rounding."""
    output = first(call.output)
    if not isinstance(output, Tensor):
        return False
    attended = call.x + parts.norm_and_attend(call.x, call.arguments)
    composed = attended + parts.run_ffn(parts.ffn_norm(call.x if parts.parallel else attended), call.arguments)
    error = (composed - output).float().norm() / output.float().norm().clamp_min(1e-12)
    return bool(error < (1e-4 if output.dtype in (torch.float32, torch.float64) else 3e-2))
