"""The parts of a model that are trained: an adapter beside it, or copies of its own tensors."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from ..policies.errors import ModelError
from ..policies.policy import Policy
from ..policies.quantized.tensors import is_plain
from ..policies.trained.adapters import Adapters, adapted_layers
from ..policies.trained.files import FILES, TrainedWeights, WeightsFormat
from ..policies.trained.routers import Routers, routed_layers
from ..policies.trained.swap import WeightSwap
from .parts import lora_targets, trained_parameters
from .settings import RecoverySettings

# The modules of a model that has routers or adapters in training.
ROUTERS, ADAPTERS = "skipsearch_routers", "skipsearch_adapters"


class TrainedParts(Protocol):
    """What is trained of a model, from the first step until the model is as it was.

    Attributes:
        model: The model to train.
        form: The form of the files.
        count: How many numbers are trained.
    """

    model: nn.Module
    form: WeightsFormat
    count: int

    @property
    def routers(self) -> Routers | None:
        """The routers that are trained; None where the policy ranks image tokens by none."""
        ...

    @property
    def adapters(self) -> Adapters | None:
        """The adapters that are trained; None where the policy has none."""
        ...

    def dense_logits(self, model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
        """The logits of the model as it was before; the caller lifts the policy.

        Args:
            model: The model, without the wrappers of a trainer.
            inputs: Its inputs.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write the trained weights into a folder, in the dtype of training."""
        ...

    def load(self, folder: Path) -> None:
        """Read what `save` wrote."""
        ...

    def write(self, folder: Path) -> TrainedWeights:
        """Write the weights that belong beside a policy."""
        ...

    def remove(self) -> None:
        """Restore the model bit for bit."""
        ...


class OwnTensors:
    """Trains tensors of the model, in float32; the originals stay in memory.

    Args:
        model: The model, whose parameters take no gradients.
        names: The names of the parameters to train.
    """

    form: WeightsFormat = "safetensors"
    routers: Routers | None = None
    adapters: Adapters | None = None

    def __init__(self, model: PreTrainedModel, names: list[str]) -> None:
        self.model: nn.Module = model
        parameters = {name: model.get_parameter(name) for name in names}
        if quantised := [name for name, one in parameters.items() if not is_plain(one) or one.is_meta]:
            hint = "load the model with dtype bfloat16 or float32, on one device"
            raise ModelError("a quantised or offloaded model cannot be trained", quantised[:5], hint)
        self._parameters = parameters
        self._originals = {name: one.data for name, one in parameters.items()}
        self._swap = WeightSwap(
            model, {name: one.data.to(torch.float32, copy=True) for name, one in parameters.items()}
        )
        self._swap.exchange()
        for one in parameters.values():
            one.requires_grad_(True)
        self.count = sum(one.numel() for one in parameters.values())

    def dense_logits(self, model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
        """See `TrainedParts`."""
        logits: Tensor = functional_call(model, self._originals, (), dict(inputs)).logits
        return logits

    def save(self, folder: Path) -> None:
        """See `TrainedParts`."""
        save_file({name: one.data.contiguous() for name, one in self._parameters.items()}, self._file(folder))

    def load(self, folder: Path) -> None:
        """See `TrainedParts`."""
        for name, tensor in load_file(self._file(folder)).items():
            self._parameters[name].data.copy_(tensor)

    def write(self, folder: Path) -> TrainedWeights:
        """See `TrainedParts`; the tensors have the dtype that they have in the model."""
        tensors = {name: one.data.to(self._originals[name].dtype) for name, one in self._parameters.items()}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, self._file(folder))
        return TrainedWeights.of(folder, self.form)

    def remove(self) -> None:
        """See `TrainedParts`."""
        for one in self._parameters.values():
            one.grad = None
            one.requires_grad_(False)
        self._swap.exchange()

    def _file(self, folder: Path) -> Path:
        return folder / FILES[self.form][0]


class LoraAdapter:
    """Trains a LoRA adapter of PEFT beside linear layers.

    Args:
        model: The model, whose parameters take no gradients.
        targets: The names of the linear modules.
        rank: The adapter's rank; its alpha is twice the rank.

    Raises:
        ModelError: PEFT is not installed.
    """

    form: WeightsFormat = "peft"
    routers: Routers | None = None
    adapters: Adapters | None = None

    def __init__(self, model: PreTrainedModel, targets: list[str], rank: int) -> None:
        try:
            import peft
        except ImportError as cause:
            hint = "pip install 'skipsearch[recover]', or train with --method full"
            raise ModelError("a LoRA adapter needs the package peft", [str(cause)], hint) from cause
        config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, bias="none")
        self._adapted: Any = peft.get_peft_model(model, config)
        self.model: nn.Module = self._adapted
        self._trained = {name: one for name, one in self._adapted.named_parameters() if one.requires_grad}
        self.count = sum(one.numel() for one in self._trained.values())

    def dense_logits(self, model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
        """See `TrainedParts`."""
        with self._adapted.disable_adapter():
            logits: Tensor = model(**inputs).logits
        return logits

    def save(self, folder: Path) -> None:
        """See `TrainedParts`."""
        self._adapted.save_pretrained(folder)

    def load(self, folder: Path) -> None:
        """See `TrainedParts`."""
        from peft import load_peft_weights, set_peft_model_state_dict

        set_peft_model_state_dict(self._adapted, load_peft_weights(str(folder), device="cpu"))

    def write(self, folder: Path) -> TrainedWeights:
        """See `TrainedParts`."""
        self._adapted.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's card; ours says more
        return TrainedWeights.of(folder, self.form)

    def remove(self) -> None:
        """See `TrainedParts`."""
        model = self._adapted.unload()
        for name in ("peft_config", "_hf_peft_config_loaded"):
            vars(model).pop(name, None)


class WithModules:
    """Trains routers and adapters beside other parts of a model.

    Args:
        parts: The other parts.
        model: The model, which has the routers and adapters among its modules until they are removed.
        routers: The routers; None for none.
        adapters: The adapters; None for none.
    """

    def __init__(
        self,
        parts: OwnTensors | LoraAdapter,
        model: PreTrainedModel,
        routers: Routers | None,
        adapters: Adapters | None,
    ) -> None:
        self._parts, self._base = parts, model
        self.routers, self.adapters = routers, adapters
        self.model, self.form, self.count = parts.model, parts.form, parts.count
        named: dict[str, Routers | Adapters | None] = {ROUTERS: routers, ADAPTERS: adapters}
        self._own = {name: one for name, one in named.items() if one is not None}
        for name, one in self._own.items():
            self.count += sum(parameter.numel() for parameter in one.parameters())
            model.add_module(name, one.to(model.device))

    def dense_logits(self, model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
        """See `TrainedParts`."""
        return self._parts.dense_logits(model, inputs)

    def save(self, folder: Path) -> None:
        """See `TrainedParts`."""
        self._parts.save(folder)
        for one in self._own.values():
            one.save(folder)

    def load(self, folder: Path) -> None:
        """See `TrainedParts`."""
        self._parts.load(folder)
        for one in self._own.values():
            one.load(folder)

    def write(self, folder: Path) -> TrainedWeights:
        """See `TrainedParts`."""
        self._parts.write(folder)
        for one in self._own.values():
            one.save(folder)
        return TrainedWeights.of(folder, self.form, routers=ROUTERS in self._own, adapters=ADAPTERS in self._own)

    def remove(self) -> None:
        """See `TrainedParts`."""
        for name in self._own:
            del self._base._modules[name]
        self._parts.remove()


@contextmanager
def trained_parts(model: PreTrainedModel, policy: Policy, settings: RecoverySettings) -> Iterator[TrainedParts]:
    """What a method trains of a model; the model is restored at the end.

    Raises:
        ModelError: the method finds nothing to train.
    """
    own: OwnTensors | LoraAdapter
    if settings.method == "lora":
        own = LoraAdapter(model, lora_targets(model, policy), settings.lora_rank)
    else:
        nothing = settings.method in ("router", "adapter")
        own = OwnTensors(model, [] if nothing else list(trained_parameters(model, policy, settings.method)))
    routers = Routers.of(model, policy) if routed_layers(policy) else None
    adapters = Adapters.of(model, policy, settings.adapter_rank) if adapted_layers(policy) else None
    none = routers is None and adapters is None
    made: TrainedParts = own if none else WithModules(own, model, routers, adapters)
    try:
        yield made
    finally:
        made.remove()
