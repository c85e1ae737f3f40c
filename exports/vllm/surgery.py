"""Taking sublayers out of a model of vLLM, with no code for single families.

A layer's attention is the part that holds a layer of vLLM's cache, its FFN the other parts that are made of parts. That
nothing else changes the hidden states is measured: a layer whose sublayers give zeros must hand on what it was given.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...policies.errors import ExportError
from ...policies.families.model_errors import is_out_of_memory

LeftOut = frozenset[str]
HINT = "`skipsearch serve` runs the model with transformers"
ARGUMENTS = ("positions", "hidden_states", "residual")


class Zeros(nn.Module):
    """Stands for a sublayer that is skipped."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Zeros of the shape of the hidden states, which are the first tensor of floating point numbers."""
        given = [*args, *kwargs.values()]
        hidden = next(value for value in given if isinstance(value, Tensor) and value.is_floating_point())
        return torch.zeros_like(hidden)


class Through(nn.Module):
    """Stands for a layer that is skipped.

    Args:
        names: The names of the layer's arguments, in order.
    """

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The hidden states as they came; with the residual, where the layer takes one."""
        given = dict(zip(self.names, args, strict=False)) | kwargs
        if "residual" in self.names:
            return given["hidden_states"], given["residual"]
        return given["hidden_states"]


def leave_out(model: nn.Module, layers: Mapping[int, LeftOut], num_layers: int, compilation: Any) -> tuple[int, int]:
    """Leave sublayers and layers out of a loaded model, with their weights and their places in the cache.

    Args:
        model: The model.
        layers: The sublayers to leave out, by layer.
        num_layers: How many layers the policy was made for.
        compilation: vLLM's compilation configuration, which lists the layers that have a cache, and the experts.

    Returns:
        How many layers had a cache before, and how many have one now.

    Raises:
        ExportError: the model has another number of layers, or a layer of an unknown build.
    """
    context = compilation.static_forward_context
    caches = {name: layer for name, layer in context.items() if hasattr(layer, "get_kv_cache_spec")}
    decoder = decoder_list(model, list(caches.values()))
    if len(decoder) != num_layers:
        raise ExportError(
            f"the policy was made for {num_layers} layers, the model has {len(decoder)}",
            [f"model {type(model).__name__}"],
            "use the model that the policy was made for",
        )
    parts = {index: sublayers(decoder, index, list(caches.values())) for index in layers}
    for index, names in parts.items():
        refuse_unknown_build(decoder, index, [name for side in names.values() for name in side])
    removed = [module for index, left in layers.items() for module in cut(decoder, index, left, parts[index])]
    gone = {id(module) for root in removed for module in root.modules()}
    forget(compilation, [name for name, layer in context.items() if id(layer) in gone])
    free(model, removed)
    left = sum(name in context for name in caches)
    if not left:
        raise ExportError("the policy skips every attention", ["vLLM needs one layer with a cache"], HINT)
    return len(caches), left


def decoder_list(model: nn.Module, caches: Sequence[nn.Module]) -> nn.ModuleList:
    """The list of decoder layers: the only list whose members each hold a layer with a cache.

    Raises:
        ExportError: there is none, or several.
    """
    language_model: Any = getattr(model, "get_language_model", lambda: model)
    text = language_model()
    lists = {name: part for name, part in text.named_modules() if isinstance(part, nn.ModuleList) and len(part)}
    found = [part for part in lists.values() if all(holds(layer, caches) for layer in part)]
    if len(found) != 1:
        listed = ", ".join(f"{name} ({len(part)})" for name, part in lists.items()) or "none"
        raise ExportError(
            f"no list of decoder layers is found in {type(model).__name__}",
            [f"found {len(found)} lists whose layers all have an attention, expected 1; lists of modules: {listed}"],
            HINT,
        )
    return found[0]


def holds(module: nn.Module, caches: Sequence[nn.Module]) -> bool:
    """True where one of these modules is in another."""
    inside = {id(part) for part in module.modules()}
    return any(id(cache) in inside for cache in caches)


def sublayers(decoder: nn.ModuleList, index: int, caches: Sequence[nn.Module]) -> dict[str, list[str]]:
    """The names of the children of a layer that make up its attention and its FFN.

    Raises:
        ExportError: the layer lacks one of them.
    """
    children = dict(decoder[index].named_children())
    attention = [name for name, child in children.items() if holds(child, caches)]
    ffn = [name for name, child in children.items() if name not in attention and any(child.children())]
    if len(attention) != 1 or not ffn:
        raise unknown_build(decoder, index, "expected one attention, and an FFN that is a module of several parts")
    return {"attention": attention, "ffn": ffn}


def unknown_build(decoder: nn.ModuleList, index: int, reason: str) -> ExportError:
    """The error for a layer that cannot be taken apart."""
    layer = decoder[index]
    names = ", ".join(name for name, _ in layer.named_children())
    return ExportError(
        f"layer {index} cannot be taken apart in vLLM",
        [f"found a {type(layer).__name__} with the parts {names}", reason],
        HINT,
    )


def refuse_unknown_build(decoder: nn.ModuleList, index: int, names: Sequence[str]) -> None:
    """Refuse a layer that changes the hidden states although its sublayers give zeros.

    Raises:
        ExportError: it does, or it takes other arguments than layers of vLLM do.
    """
    layer = decoder[index]
    arguments = inspect.signature(layer.forward).parameters
    needed = [name for name, argument in arguments.items() if argument.default is argument.empty]
    wanted = [
        name
        for name in needed
        if arguments[name].kind not in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    ]
    more = [name for name in wanted if name not in ARGUMENTS]
    if more or "hidden_states" not in arguments:
        raise unknown_build(
            decoder, index, f"its arguments are {', '.join(arguments)}, expected {', '.join(ARGUMENTS)}"
        )
    given = {name: value for name, value in random_input(decoder, index).items() if name in arguments}
    try:
        with zeroed(layer, names), torch.inference_mode(), filled_memory():
            output = layer(**{name: value.clone() for name, value in given.items()})
    except Exception as cause:
        if is_out_of_memory(cause):
            raise
        # The forward of an unknown family can raise anything.
        raise unknown_build(
            decoder, index, f"without its sublayers it raises {type(cause).__name__}: {cause}"
        ) from cause
    if not hands_on(given, output):
        raise unknown_build(decoder, index, "with zeros for both sublayers it changes the hidden states")


def random_input(decoder: nn.ModuleList, index: int) -> dict[str, Tensor]:
    """Positions, hidden states and a residual of three tokens, which fit a layer.

    Raises:
        ExportError: the layer has no norm, whose weights tell the width.
    """
    leaves = [child for child in decoder[index].children() if not any(child.children())]
    norms = [weight for leaf in leaves for weight in leaf.parameters() if weight.is_floating_point()]
    norm = next((weight for weight in norms if weight.ndim == 1 and len(weight)), None)
    if norm is None:
        raise unknown_build(decoder, index, "expected a norm with weights")
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(3, len(norm), generator=generator).to(norm.device, norm.dtype) for _ in range(2)]
    return {"positions": torch.arange(3, device=norm.device), "hidden_states": drawn[0], "residual": drawn[1]}


@contextmanager
def zeroed(layer: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Let parts of a layer give zeros in this context."""
    parts = {name: getattr(layer, name) for name in names}
    try:
        for name in parts:
            setattr(layer, name, Zeros())
        yield
    finally:
        for name, part in parts.items():
            setattr(layer, name, part)


@contextmanager
def filled_memory() -> Iterator[None]:
    """Fill new memory with NaN in this context: an output that no sublayer wrote to must not pass for zeros."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def hands_on(given: Mapping[str, Tensor], output: Any) -> bool:
    """True where a layer's output is its input: the hidden states, or their sum with the residual."""
    hidden = given["hidden_states"].float()
    bound = 1e-4 if given["hidden_states"].dtype == torch.float32 else 5e-2
    if "residual" not in given:
        return isinstance(output, Tensor) and torch.allclose(output.float(), hidden, atol=bound)
    if not isinstance(output, tuple) or len(output) != 2 or not isinstance(output[0], Tensor):
        return False
    # Layers of parallel sublayers take a residual and do not use it.
    if torch.allclose(output[0].float(), hidden, atol=bound):
        return True
    return isinstance(output[1], Tensor) and torch.allclose(
        output[0].float() + output[1].float(), hidden + given["residual"].float(), atol=bound
    )


def cut(decoder: nn.ModuleList, index: int, left: LeftOut, parts: Mapping[str, list[str]]) -> list[nn.Module]:
    """Put a stand-in where a layer or its sublayers were.

    Returns:
        The modules that were there.
    """
    layer = decoder[index]
    if len(left) == len(parts):
        decoder[index] = Through(list(inspect.signature(layer.forward).parameters))
        return [layer]
    names = [name for side in left for name in parts[side]]
    removed = [getattr(layer, name) for name in names]
    for name in names:
        setattr(layer, name, Zeros())
    return removed


def forget(compilation: Any, names: Sequence[str]) -> None:
    """Take layers off vLLM's lists: those with a cache, and the experts, which it counts from first to last.

    Raises:
        ExportError: a layer that stays reads the cache of one that goes.
    """
    context = compilation.static_forward_context
    readers = [
        f"{name} reads the cache of {layer.kv_sharing_target_layer_name}"
        for name, layer in context.items()
        if name not in names and getattr(layer, "kv_sharing_target_layer_name", None) in names
    ]
    if readers:
        raise ExportError("the layers of this model share keys and values, so none can be skipped alone", readers, HINT)
    for name in names:
        del context[name]
    experts = getattr(compilation, "static_all_moe_layers", [])
    experts[:] = [name for name in experts if name not in names]


def free(model: nn.Module, removed: Sequence[nn.Module]) -> None:
    """Free the weights of modules that were taken out, because lists of experts may still refer to the modules."""
    kept = {id(weight) for weight in model.parameters()}
    for weight in (weight for module in removed for weight in module.parameters() if id(weight) not in kept):
        weight.data = weight.data.new_empty(0)
