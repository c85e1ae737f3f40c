"""Finding the decoder layers of a model, and proving that we know what each of them computes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import ModelError
from .anatomy import ANATOMIES, Kind, Sublayers, first, parameters


@dataclass(frozen=True)
class DecoderLayer:
    """A decoder layer that can be wrapped.

    Attributes:
        index: Its 0-based place in the list of layers.
        module: The layer itself.
        sublayers: Its parts.
        parameters: The names of its forward's parameters, to name what is passed by position.
    """

    index: int
    module: nn.Module
    sublayers: Sublayers
    parameters: tuple[str, ...]

    @property
    def kind(self) -> Kind:
        """Self-attention with keys and values, a linear mixer, or attention to an image."""
        return self.sublayers.kind

    @property
    def slot(self) -> int:
        """The number under which its attention stores in a cache: not its place where layers were taken out."""
        number = getattr(self.sublayers.attention, "layer_idx", None)
        return self.index if number is None else number


@dataclass(frozen=True)
class Call:
    """One call of a layer, as it was observed.

    Attributes:
        x: What enters it, shape (batch, tokens, width).
        arguments: All else, by name.
        output: What it returned.
    """

    x: Tensor
    arguments: dict[str, Any]
    output: Any


UNKNOWN = "this model family is not supported; add its anatomy to skipsearch/policies/anatomy.py"
# What decoders call the list of their layers.
LISTS = ("layers", "h")

_proven: "WeakKeyDictionary[nn.Module, tuple[DecoderLayer, ...]]" = WeakKeyDictionary()


def decoder_layers(model: PreTrainedModel) -> tuple[DecoderLayer, ...]:
    """The decoder layers of a model, each proven once: its parts put together equal the layer on random input.

    Raises:
        ModelError: the model has no layers we can find, or they are of a kind that we cannot take apart.
    """
    decoder, modules = model.get_decoder(), list(layer_list(model))
    layers = _proven.get(decoder)
    if layers is None or [layer.module for layer in layers] != modules:
        layers = _proven[decoder] = prove(model, modules)
    check_slots(type(model).__name__, layers)
    return layers


def check_slots(name: str, layers: Sequence[DecoderLayer]) -> None:
    """Refuse layers of which two would store in one place, or none in the first, from which lengths are read.

    Raises:
        ModelError: with the numbers that the layers carry.
    """
    slots = [layer.slot for layer in layers]
    if len(set(slots)) < len(slots) or slots[0] != 0:
        raise ModelError(
            f"the layers of {name} do not fit its cache",
            [f"found the numbers {', '.join(map(str, slots))}, expected 0 first and no number twice"],
            "number them anew: `layer.self_attn.layer_idx = place` for each layer in its place",
        )


def layer_list(model: PreTrainedModel) -> nn.ModuleList:
    """The list of the decoder layers, first to last.

    Raises:
        ModelError: the decoder has no such list, or its layers use each other's keys and values.
    """
    if getattr(model.config.get_text_config(), "num_kv_shared_layers", 0):
        raise ModelError(
            f"the layers of {type(model).__name__} share keys and values, so none can be skipped alone",
            [f"num_kv_shared_layers is {model.config.get_text_config().num_kv_shared_layers}, expected 0"],
            "use a model whose layers each have their own",
        )
    found = (getattr(model.get_decoder(), name, None) for name in LISTS)
    layers = next((layers for layers in found if isinstance(layers, nn.ModuleList) and len(layers)), None)
    if layers is None:
        lists = [f"{name} ({len(part)})" for name, part in model.named_modules() if isinstance(part, nn.ModuleList)]
        raise ModelError(
            f"no decoder layers found in {type(model).__name__}",
            [f"looked for {' and '.join(LISTS)} in get_decoder(); module lists present: {', '.join(lists) or 'none'}"],
            f"skipsearch wraps decoder models whose layers are a list named {' or '.join(f'`{n}`' for n in LISTS)}",
        )
    return layers


def prove(model: PreTrainedModel, modules: list[nn.Module]) -> tuple[DecoderLayer, ...]:
    """Run the decoder on random input, and compare each layer with its own parts put together.

    Raises:
        ModelError: a layer has parts that we do not know, or computes something that they do not show.
    """
    name = type(model).__name__
    calls: dict[nn.Module, Call] = {}
    try:
        with observed(modules, calls), evaluating(model.get_decoder()), torch.no_grad():
            model.get_decoder()(**random_input(model), use_cache=False)
            found = [take_apart(name, index, module, calls) for index, module in enumerate(modules)]
    except (ModelError, torch.OutOfMemoryError):
        raise
    except Exception as cause:
        # Whatever a family that we do not know raises, the user needs to read that it is not supported.
        reason = f"{type(cause).__name__}: {cause}".splitlines()[0]
        raise ModelError(f"the layers of {name} cannot be checked", [reason], UNKNOWN) from cause
    layers = tuple(layer for layer in found if isinstance(layer, DecoderLayer))
    if len(layers) < len(modules):
        check_finite(model, modules, calls)
        wrong = [index for index, layer in enumerate(found) if layer is None]
        raise ModelError(
            f"the layers of {name} compute something that their sublayers do not show",
            [f"layer {index} ({type(modules[index]).__name__}) differs from its own parts" for index in wrong[:3]],
            UNKNOWN,
        )
    return layers


def check_finite(model: PreTrainedModel, modules: list[nn.Module], calls: dict[nn.Module, Call]) -> None:
    """Refuse weights that are no numbers, and layers that compute none of a random input.

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
    """True where no number of a tensor is NaN or infinite; without a copy of it."""
    if weight.is_meta or not weight.numel():
        return True
    try:
        ends = torch.stack(torch.aminmax(weight.detach()))
    except RuntimeError:  # of a kind that torch does not compare, such as 8-bit floats
        return True
    return bool(ends.isfinite().all())


def take_apart(name: str, index: int, module: nn.Module, calls: dict[nn.Module, Call]) -> DecoderLayer | None:
    """Find the sublayers that give a layer's own output; None where those that fit it do not.

    Raises:
        ModelError: no known anatomy fits.
    """
    fitting = [anatomy for anatomy in ANATOMIES if anatomy.fits(module)]
    if not fitting:
        own = chain(
            module.named_children(), module.named_parameters(recurse=False), module.named_buffers(recurse=False)
        )
        raise ModelError(
            f"the layers of {name} cannot be taken apart",
            [f"layer {index} is a {type(module).__name__} with the parts {', '.join(part for part, _ in own)}"],
            UNKNOWN,
        )
    if module not in calls:
        return None
    call = calls[module]
    for anatomy in fitting:
        sublayers = Sublayers(module, anatomy, call.output)
        if matches(sublayers, call):
            return DecoderLayer(index, module, sublayers, argument_names(module))
    return None


def argument_names(module: nn.Module) -> tuple[str, ...]:
    """What the arguments of a module's forward are called, in order."""
    return tuple(parameters(module))[1:]


@contextmanager
def observed(modules: list[nn.Module], calls: dict[nn.Module, Call]) -> Iterator[None]:
    """Note how the modules are called in this context, and what they return."""

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        named = dict(zip(argument_names(module), args, strict=False)) | kwargs
        calls[module] = Call(named.pop("hidden_states"), named, output)

    hooks = [module.register_forward_hook(note, with_kwargs=True) for module in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def evaluating(decoder: nn.Module) -> Iterator[None]:
    """The decoder in evaluation mode, each of its modules put back as it was."""
    modes = {module: module.training for module in decoder.modules()}
    decoder.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def random_input(model: PreTrainedModel) -> dict[str, Tensor]:
    """Five random token embeddings, drawn without touching the global random state; shape (1, 5, width).

    A decoder that attends to an image gets that, too, and a mask of the tokens that see it.
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


def matches(parts: Sublayers, call: Call) -> bool:
    """True where the composed layer gives the layer's own output, up to rounding."""
    output = first(call.output)
    if not isinstance(output, Tensor):
        return False
    attended = call.x + parts.attend(call.x, call.arguments)
    composed = attended + parts.feed(parts.normalise(call.x if parts.parallel else attended), call.arguments)
    error = (composed - output).float().norm() / output.float().norm().clamp_min(1e-12)
    return bool(error < (1e-4 if output.dtype in (torch.float32, torch.float64) else 3e-2))
