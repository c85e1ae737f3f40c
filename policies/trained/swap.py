"""Putting trained weights into a model while a policy is applied, and taking them out again."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..errors import PolicyMismatch
from ..policy import Policy
from ..quantized.tensors import is_plain

MAX_LISTED = 10
PEFT_PREFIX = "base_model.model."
# Options of a LoRA adapter that change what it computes, with the values under which `merged` computes it.
PLAIN_LORA: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "use_dora": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "modules_to_save": ([], None),
    "trainable_token_indices": (None, []),
    "layer_replication": (None, []),
}


class WeightSwap:
    """Replaces tensors of a model in place; the parameters stay the same objects, and tied ones stay tied.

    Args:
        model: The model.
        tensors: The tensors by the name of the parameter, with its shape, dtype and device.
    """

    def __init__(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        self._pairs = [(model.get_parameter(name), tensor) for name, tensor in tensors.items()]

    def exchange(self) -> None:
        """Exchange the tensors of the model with those held here: a second call restores the model bit for bit."""
        for place, (parameter, tensor) in enumerate(self._pairs):
            self._pairs[place] = parameter, parameter.data
            parameter.data = tensor


def trained_swap(model: nn.Module, policy: Policy) -> WeightSwap | None:
    """The weights that belong to a policy, ready to be put into a model; None where it has none.

    A LoRA adapter is merged, W + s B A, so that the model computes no more than without it.

    Raises:
        PolicyError: the weights are not beside the policy, or they are other ones.
        PolicyMismatch: they do not fit the model.
    """
    if policy.weights is None:
        return None
    folder = policy.weights.check(policy.folder)
    # What is made in inference mode cannot take part in training later.
    with torch.inference_mode(False), torch.no_grad():
        made = merged(model, folder) if policy.weights.format == "peft" else whole(model, folder)
    return WeightSwap(model, made)


def whole(model: nn.Module, folder: Path) -> dict[str, Tensor]:
    """The tensors of `trained.safetensors`, on the devices and in the dtypes of the model's."""
    found, parameters = read_tensors(folder / "trained.safetensors"), dict(model.named_parameters())
    refuse_misfits(folder, {name: tensor.shape for name, tensor in found.items()}, parameters)
    return {name: tensor.to(parameters[name]) for name, tensor in found.items()}


def merged(model: nn.Module, folder: Path) -> dict[str, Tensor]:
    """The weights of a model with a LoRA adapter added, by name.

    Raises:
        PolicyMismatch: the adapter is no plain LoRA, or it does not fit the model.
    """
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    strange = [f"{key}: {config.get(key)}" for key, known in PLAIN_LORA.items() if config.get(key) not in known]
    found = read_tensors(folder / "adapter_model.safetensors")
    keys = {key.removeprefix(PEFT_PREFIX).rpartition(".lora_") for key in found}
    strange += sorted(key for key in found if not key.endswith((".lora_A.weight", ".lora_B.weight")))
    if strange:
        hint = "merge the adapter with PEFT, and save the whole model"
        raise PolicyMismatch(f"{folder} holds no plain LoRA adapter", [f"found {text}" for text in strange], hint)
    names = sorted({module for module, _, _ in keys})
    scale = config["lora_alpha"] / (config["r"] ** 0.5 if config.get("use_rslora") else config["r"])
    parameters, updates = dict(model.named_parameters()), {}
    for name in names:
        a, b = (found[f"{PEFT_PREFIX}{name}.lora_{part}.weight"].float() for part in "AB")
        update = scale * (b @ a)
        is_turned = f"{name}.weight" in parameters and isinstance(model.get_submodule(name), Conv1D)
        updates[f"{name}.weight"] = update.T if is_turned else update
    refuse_misfits(folder, {name: update.shape for name, update in updates.items()}, parameters)
    return {name: added(parameters[name], update) for name, update in updates.items()}


def added(weight: Tensor, update: Tensor) -> Tensor:
    """A weight plus an update, summed in float32 and rounded to the dtype of the weight."""
    return (weight.float() + update.to(weight.device)).to(weight.dtype)


def kind_of(parameter: Tensor) -> str:
    """What a weight is, in one word: its dtype, or the kind of a quantised one."""
    return str(parameter.dtype) if type(parameter) is nn.Parameter else type(parameter).__name__


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU.

    Raises:
        PolicyMismatch: it is damaged.
    """
    try:
        return load_file(file)
    except SafetensorError as cause:
        hint = "copy the whole folder that `skipsearch recover` wrote"
        raise PolicyMismatch(f"{file} cannot be read", [str(cause)], hint) from cause


def refuse_misfits(folder: Path, shapes: Mapping[str, torch.Size], parameters: Mapping[str, nn.Parameter]) -> None:
    """Refuse trained weights of another model.

    Raises:
        PolicyMismatch: listing the tensors that the model lacks, that have another shape there, or that are no
            floating-point numbers on a device.
    """
    problems = []
    for name, shape in shapes.items():
        parameter = parameters.get(name)
        if parameter is None:
            problems.append(f"{name}: the model has none")
        elif parameter.shape != shape:
            problems.append(f"{name}: found {list(shape)}, the model has {list(parameter.shape)}")
        elif parameter.is_meta or not is_plain(parameter):
            problems.append(f"{name}: the model has it as {kind_of(parameter)} on {parameter.device}")
    if problems:
        more = [f"and {len(problems) - MAX_LISTED} more"] if len(problems) > MAX_LISTED else []
        hint = "load the model that the policy names, neither quantised nor offloaded"
        raise PolicyMismatch(f"the weights in {folder} do not fit the model", problems[:MAX_LISTED] + more, hint)
