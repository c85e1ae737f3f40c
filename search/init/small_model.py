"""A small model of random weights, made from a model's configuration: what its layers allow, the large one allows."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_log

from ...evaluators.subject import model_kind
from ...exports.checkpoint.config_fields import config_without
from ...policies.errors import ModelError
from ...policies.families.layers import decoder_layers, layer_list
from ...policies.families.model_errors import is_of_model
from ...policies.wording import first_line
from .shrink import shares_keys, shrunk

Kind: TypeAlias = tuple[tuple[str, str], ...]

# Heads of each attention, and whether the depth is cut: some families cannot be built with two heads, or few layers.
# Of four heads that share keys in pairs, half can be left out.
SIZES, SIZES_OF_SHARED_KEYS = ((2, True), (4, True), (2, False)), ((4, True), (2, True), (4, False))
MOST_WEIGHTS = 500_000_000  # two gigabytes
MOST_KINDS = 8
NOISE = 0.1


@dataclass(frozen=True)
class SmallModel:
    """A small model, and which of its layers stands for each layer of the model that it was made from.

    Attributes:
        model: The small model.
        stands_for: By layer of the large model, the small model's layer of the same build.
    """

    model: PreTrainedModel
    stands_for: tuple[int, ...]


def small_model(config: PreTrainedConfig, name: str, trust_remote_code: bool = False) -> SmallModel:
    """A model of two layers and of small widths; of one layer more for each further build that the layers have.

    Args:
        config: The configuration.
        name: The model's name, for messages.
        trust_remote_code: Whether to run code that comes with the model.

    Raises:
        ModelError: the model cannot be built, or its layers cannot be taken apart.
    """
    failed: Exception | None = None
    for heads, is_cut in SIZES_OF_SHARED_KEYS if shares_keys(config) else SIZES:
        try:
            small = made_small(shrunk(config, heads), is_cut, trust_remote_code)
            decoder_layers(small.model)
            return small
        except ImportError as cause:
            what = f"model {name} needs a package that is missing"
            raise ModelError(what, [first_line(cause)], "install it") from cause
        except ModelError as cause:
            # With a cause, the forward failed, which another size may mend.
            if cause.__cause__ is None:
                raise
            failed = cause
        except Exception as cause:
            if not is_of_model(cause):
                raise
            # A configuration can be wrong in any way, and building a model runs code of its family.
            failed = failed or cause
    if isinstance(failed, ModelError):
        raise failed
    hint = "see whether `AutoModel.from_config` builds a model of this configuration; the space can be written by hand"
    what = f"no small {config.model_type} can be built from the configuration of {name}, to try choices on"
    raise ModelError(what, [first_line(failed or RuntimeError())], hint) from failed


def made_small(config: PreTrainedConfig, is_cut: bool, trust_remote_code: bool) -> SmallModel:
    """A model of a configuration with small widths; with two layers, and one more for each further build, where cut.

    Raises:
        ValueError: it is still large, or layers of fewer are built in another way.
        ModelError: it has no list of decoder layers.
    """
    with torch.device("meta"):
        whole = build(config, trust_remote_code)
    kinds = layer_kinds(list(layer_list(whole)))
    kept = representatives(kinds) if is_cut else [*range(len(kinds))]
    config = config_without(whole, kept) if len(kept) < len(kinds) else config
    with torch.device("meta"):
        small = build(config, trust_remote_code)
    found = layer_kinds(list(layer_list(small)))
    if found != [kinds[index] for index in kept]:
        raise ValueError("its layers are built in another way where there are fewer of them")
    weights = sum(weight.numel() for weight in small.parameters())
    if weights > MOST_WEIGHTS:
        raise ValueError(f"{weights / 1e6:.0f} million weights are left where its numbers are made small")
    model = with_random_weights(config, trust_remote_code)
    return SmallModel(model, tuple(found.index(kind) for kind in kinds))


def build(config: PreTrainedConfig, trust_remote_code: bool) -> PreTrainedModel:
    """A model in float32."""
    auto, _ = model_kind(config)
    model: PreTrainedModel = auto.from_config(config, trust_remote_code=trust_remote_code, dtype=torch.float32)
    return model


def with_random_weights(config: PreTrainedConfig, trust_remote_code: bool) -> PreTrainedModel:
    """A model on the CPU in evaluation mode, with weights that are the same each time."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = build(config, trust_remote_code).eval()
        for weight in model.parameters():
            # Fresh norms are all alike and gates are closed: what a choice changes there would not show.
            if weight.ndim == 1:
                weight += NOISE * torch.randn_like(weight)
    return model


def layer_kinds(layers: Sequence[nn.Module]) -> list[Kind]:
    """The build of each layer: its parts, the shapes of their weights, and its settings such as a sliding window."""
    parts = [parts_of(layer) for layer in layers]
    whole = [(*part, *settings_of(layer)) for part, layer in zip(parts, layers, strict=True)]
    return whole if len({*whole}) <= MOST_KINDS else parts


def parts_of(layer: nn.Module) -> Kind:
    """The classes of a layer's modules and the shapes of its weights."""
    modules = [(name, type(module).__name__) for name, module in layer.named_modules()]
    return (*modules, *((name, str(tuple(weight.shape))) for name, weight in layer.named_parameters()))


def settings_of(layer: nn.Module) -> Kind:
    """The settings of a layer and of its parts, without their numbers."""
    modules = {"": layer, **dict(layer.named_children())}
    return tuple(
        (f"{name}.{key}", str(value))
        for name, module in modules.items()
        for key, value in vars(module).items()
        if isinstance(value, str | bool | int | None) and not (key.startswith("_") or "idx" in key)
    )


def representatives(kinds: Sequence[Kind]) -> list[int]:
    """The first layer of each kind, and at least two layers."""
    first = [kinds.index(kind) for kind in dict.fromkeys(kinds)]
    further = [index for index in range(len(kinds)) if index not in first]
    return sorted([*first, *further[: max(2 - len(first), 0)]])


@contextmanager
def silence() -> Iterator[None]:
    """Suppress the log and the warnings of transformers, which are about the small model."""
    before = transformers_log.get_verbosity()
    transformers_log.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_log.set_verbosity(before)
