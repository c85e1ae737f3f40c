"""Quantises the linear layers of a decoder, for good or for as long as a policy is applied."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import ModelError, PolicyError, PolicyMismatch
from ..families.layers import layer_list
from ..policy import Policy
from .kinds import INT8, NONE
from .tensors import is_int8, plain_tensors


class QuantizedSwap:
    """Replaces the weights of linear layers by quantised ones; what the layers had stays in memory meanwhile.

    Args:
        weights: By linear layer, its quantised weight.
    """

    def __init__(self, weights: dict[nn.Linear, nn.Parameter]) -> None:
        self._weights = weights

    def exchange(self) -> None:
        """Exchange the weights of the layers with those held here: a second call restores the model bit for bit."""
        for linear, weight in self._weights.items():
            before: nn.Parameter = linear.get_parameter("weight")
            self._weights[linear], linear.weight = before, weight


def quantized_swap(model: PreTrainedModel, policy: Policy) -> QuantizedSwap | None:
    """The quantised weights that a policy asks for; None where it asks for none, or the model has them.

    Raises:
        PolicyError: the policy has trained weights.
        PolicyMismatch: the model is quantised to something else.
        ModelError: see `quantized_weights`.
    """
    wanted = policy.model.quantization
    found = NONE if wanted == NONE else quantization_of(model)
    if wanted in (NONE, found):
        return None
    if policy.weights is not None:
        reason = f"found weights beside model.quantization {wanted}"
        raise PolicyError("trained weights are not quantised", [reason], "leave one of them out of the policy")
    if found != NONE:
        raise PolicyMismatch(
            f"policy is for a model with {wanted} weights, the model has {found}",
            [f"model.quantization is {wanted}, model {type(model).__name__}"],
            "load the model unquantised, and apply the policy to it, or leave model.quantization out of the policy",
        )
    return QuantizedSwap(quantized_weights(model))


def quantize(model: PreTrainedModel) -> None:
    """Replace the weights of the decoder's linear layers by `int8` ones, for good; a model with them stays as it is.

    Raises:
        ModelError: the model is quantised to something else, or see `quantized_weights`.
    """
    found = quantization_of(model)
    if found == INT8:
        return
    if found != NONE:
        name = type(model).__name__
        hint = "leave `quantization` out, which takes the weights as the checkpoint has them"
        raise ModelError(f"{name} is quantised already", [f"found {found} weights, expected {NONE}"], hint)
    QuantizedSwap(quantized_weights(model)).exchange()


def quantization_of(model: PreTrainedModel) -> str:
    """What the weights of the decoder's layers are quantised to: `none`, `int8`, or the name of another format."""
    weights = [linear.weight for linear in linear_layers(model)]
    if weights and all(map(is_int8, weights)):
        return INT8
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None:
        method = quantizer.quantization_config.quant_method
        return str(getattr(method, "value", method))
    return next((type(weight).__name__ for weight in weights if type(weight) is not nn.Parameter), NONE)


def quantized_share(model: PreTrainedModel) -> float:
    """The share of the numbers in the decoder's layers that are 8-bit integers; experts in one tensor are none."""
    weights = {id(weight): weight for weight in layer_list(model).parameters()}.values()
    return sum(weight.numel() for weight in weights if is_int8(weight)) / sum(weight.numel() for weight in weights)


def linear_layers(model: PreTrainedModel) -> Iterator[nn.Linear]:
    """The linear layers in the decoder's layers that run as torch's do; their weights are what is quantised."""
    parts = (module for module in layer_list(model).modules() if isinstance(module, nn.Linear))
    return (part for part in parts if type(part).forward is nn.Linear.forward)


def quantized_weights(model: PreTrainedModel) -> dict[nn.Linear, nn.Parameter]:
    """The `int8` weights of the decoder's linear layers, as transformers makes them with torchao; the model stays.

    Raises:
        ModelError: torchao is not installed, the decoder has no linear layers, or their weights are offloaded.
    """
    layers = [*linear_layers(model)]
    name = type(model).__name__
    if not layers:
        hint = "leave `quantization` out"
        raise ModelError(f"the decoder of {name} has no linear layers to quantise", ["found none in its layers"], hint)
    if any(linear.weight.is_meta for linear in layers):
        reason = "some of its weights are on no device, and are loaded anew in every forward"
        raise ModelError(f"{name} cannot be quantised while it is offloaded", [reason], "load it on one device")
    made: dict[Tensor, nn.Parameter] = {}
    # What is made in inference mode could not be put into another order outside it.
    with torch.inference_mode(False), torch.no_grad():
        for weight in {linear.weight: None for linear in layers}:
            made[weight] = as_int8(weight)
    damaged = sum(not scale.isfinite().all() for one in made.values() for scale in plain_tensors(one)[1:])
    if damaged:
        raise ModelError(f"{damaged} weights of {name} cannot be quantised", ["their scales are not finite"])
    return {linear: made[linear.weight] for linear in layers}


def as_int8(weight: Tensor) -> nn.Parameter:
    """A weight with its rows as 8-bit integers, each row with one scale.

    Raises:
        ModelError: torchao is not installed.
    """
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError as cause:
        hint = 'install it: pip install "skipsearch[int8]"'
        raise ModelError("int8 weights need the package torchao", [str(cause)], hint) from cause
    holder = nn.Linear(1, 1, bias=False, device="meta")
    holder.weight = nn.Parameter(weight.detach(), requires_grad=False)
    # The setting would change torch.compile for everything else in the process.
    quantize_(holder, Int8WeightOnlyConfig(set_inductor_config=False))
    return holder.weight
