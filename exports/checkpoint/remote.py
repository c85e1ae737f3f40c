"""A checkpoint with code: only what runs is stored, and a generated modelling file leaves out the rest."""

import copy
from pathlib import Path
from string import Template
from typing import Any, ClassVar

import torch
import transformers
from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto

from ...policies.families.layers import decoder_layers
from ...policies.policy import Policy
from ...policies.version import __version__
from ..reference import Reference, auto_class
from ..target import Source, Target, named_choices
from .absent import Absent, absent_parts, absent_prefixes, present_tensors
from .hf import SCRIPT
from .save import save_checkpoint
from .weights import prefix_of

MODULE = "modeling_skipsearch"
TEMPLATE = Path(__file__).parent / f"{MODULE}.py.txt"
LABELS = ("skip_layer", "skip_attention", "skip_ffn")


class RemoteCode(Target):
    """Loads in transformers and lm-eval with `trust_remote_code=True`, without skipsearch.

    A layer that is skipped as a whole stays in its place, with no weights: the numbers of the others keep their
    meaning, on which windows, image features, scales and periods of some families depend.
    """

    name: ClassVar[str] = "hf-remote"
    text: ClassVar[str] = "a checkpoint of what runs and its modelling file, for transformers and lm-eval"

    def can(self, policy: Policy, source: Source) -> list[str]:
        """See `Target.can`."""
        model = source.model
        reasons = [f"the modelling file has no {choice}" for choice in named_choices(policy, LABELS)]
        if getattr(transformers, type(model).__name__, None) is not type(model):
            reasons.append(f"{type(model).__name__} is no class of transformers, which the modelling file extends")
        elif not auto_classes(model):
            reasons.append(f"no auto class of transformers loads {type(model).__name__}")
        if getattr(model, "hf_quantizer", None) is not None:
            reasons.append("the weights are quantised: load them unquantised")
        return reasons

    def write(self, policy: Policy, source: Source, folder: Path) -> list[str]:
        """See `Target.write`."""
        model = source.model
        base, name = type(model).__name__, f"SkipSearch{type(model).__name__}"
        absent = absent_parts(policy, model)
        state = present_tensors(model, absent)
        config = copy.deepcopy(model.config)
        config.skipsearch = description(policy, model, absent)
        config.auto_map = {kind: f"{MODULE}.{name}" for kind in auto_classes(model)}
        if guard := config.skipsearch.get("guard"):
            state[guard] = torch.empty(0, dtype=model.dtype)
        save_checkpoint(source, state, config, folder, modelling=name)
        code = Template(TEMPLATE.read_text(encoding="utf-8"))
        values = {"base": base, "name": name, "layers": prefix_of(model), "version": __version__}
        (folder / f"{MODULE}.py").write_text(code.substitute(values), encoding="utf-8")
        before, after = (sum(tensor.numel() for tensor in all_.values()) for all_ in (model.state_dict(), state))
        return [
            f"numbers in weights: {before:,} -> {after:,}; the time and the memory of what is skipped are saved",
            "a skipped attention keeps two numbers a token in a cache, so that lengths and masks are right",
            "it needs `trust_remote_code=True`; vLLM and `transformers serve` do not load it",
        ]

    def check(self, folder: Path, reference: Reference) -> float:
        """See `Target.check`."""
        dtype = str(reference.dtype).removeprefix("torch.")
        given = (str(folder), reference.kind, dtype, reference.attention, "--trust-remote-code")
        return reference.difference(reference.run(SCRIPT, *given, python=self.options.python))

    def load_lines(self, source: Source, folder: str) -> list[str]:
        """See `Target.load_lines`."""
        return [f'{auto_class(source.model)}.from_pretrained("{folder}", trust_remote_code=True)']


def description(policy: Policy, model: PreTrainedModel, absent: Absent) -> dict[str, Any]:
    """What the configuration says of a policy; JSON has no numbers as keys."""
    layers = {str(index): choice.document() for index, choice in policy.canonical().layers.items()}
    parts = {str(index): names for index, names in absent.items()}
    found: dict[str, Any] = {"num_layers": len(decoder_layers(model)), "layers": layers, "absent": parts}
    gone = absent_prefixes(model, absent)
    guards = (name for name, weight in model.named_parameters() if name.startswith(gone) and weight.numel())
    guard = next(guards, None)
    return found if guard is None else {**found, "guard": guard}


def auto_classes(model: PreTrainedModel) -> list[str]:
    """The names of transformers' auto classes that load the model's class."""
    classes = {name: value for name, value in vars(modeling_auto).items() if name.startswith("AutoModelFor")}
    return [name for name, value in classes.items() if loads(value, model)]


def loads(auto: Any, model: PreTrainedModel) -> bool:
    """True where an auto class loads the model's class."""
    mapping = auto._model_mapping
    return type(model.config) in mapping and mapping[type(model.config)] is type(model)
