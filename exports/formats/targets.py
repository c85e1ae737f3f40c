"""The text formats as export targets: each writes one small file, and reads it back as its proof."""

import json
from pathlib import Path
from typing import Any, ClassVar

from ...policies.families.layers import decoder_layers
from ...policies.policy import Policy
from ..checkpoint.config_fields import config_without, depends_on_place
from ..reference import Reference
from ..target import Source, Target, named_choices, with_model
from . import evopress, llm_drop, mergekit, swift
from .sublayers import LABELS, Given
from .table import FORMATS

# By `model_type`, the prefix of the classes in LLM-Drop's modelling files. Its DeepSeek does not read layer numbers.
LLM_DROP = {"llama": "Llama", "mistral": "Mistral", "gemma2": "Gemma2"}
EVOPRESS = ("llama", "mistral")


class TextTarget(Target):
    """A format whose tool loads the weights of the model itself.

    The tool is not run. The proof reads the file back, and compares the policy with the one that was written.
    """

    relation: ClassVar[str] = "adapter"

    def can(self, policy: Policy, source: Source) -> list[str]:
        """See `Target.can`."""
        return [f"{self.name} has no {choice}" for choice in named_choices(policy, LABELS)]

    def write(self, policy: Policy, source: Source, folder: Path) -> list[str]:
        """See `Target.write`."""
        file = FORMATS[self.name].file
        (folder / file).write_text(self.text_of(with_model(policy, source), source), encoding="utf-8")
        return [f"{file} has no weights: the tool loads those of the model", *self.notes(source)]

    def text_of(self, policy: Policy, source: Source) -> str:
        """The text of the file; the policy has the name and the number of layers of the model."""
        return FORMATS[self.name].write(policy)

    def notes(self, source: Source) -> list[str]:
        """What the user should know besides."""
        return []

    def check(self, folder: Path, reference: Reference) -> float:
        """Read the file back.

        Returns:
            0 where it is the same policy, else infinity.
        """
        file = folder / FORMATS[self.name].file
        given = Given(file.read_text(encoding="utf-8"), str(file), reference.policy.model.num_layers)
        found = FORMATS[self.name].read(given)
        return 0.0 if found.fingerprint == reference.policy.fingerprint else float("inf")

    def proof_line(self, difference: float, reference: Reference) -> str:
        """See `Target.proof_line`."""
        return f"read back, and the same policy ({reference.policy.fingerprint}); {self.name} itself was not run"


class EvoPress(TextTarget):
    """For EvoPress's own evaluation, and as a start of its search."""

    name: ClassVar[str] = "evopress"
    text: ClassVar[str] = f"EvoPress's {evopress.FILE}, for its lmeval.py and eval_ppl.py"

    def can(self, policy: Policy, source: Source) -> list[str]:
        """See `Target.can`."""
        return [*super().can(policy, source), *unknown_model(source, EVOPRESS, "EvoPress drops layers of")]

    def load_lines(self, source: Source, folder: str) -> list[str]:
        """See `Target.load_lines`."""
        model = f"--model hf --model_args pretrained={source.id or 'MODEL'}"
        return [f"python lmeval.py {model} --drop_layer_config {folder}/{evopress.FILE} --tasks TASKS"]


class LlmDrop(TextTarget):
    """For the modelling files of LLM-Drop."""

    name: ClassVar[str] = "llm-drop"
    text: ClassVar[str] = f"the keys of LLM-Drop's config.json, as {llm_drop.FILE}"

    def can(self, policy: Policy, source: Source) -> list[str]:
        """See `Target.can`."""
        return [*super().can(policy, source), *unknown_model(source, LLM_DROP, "LLM-Drop has modelling files of")]

    def text_of(self, policy: Policy, source: Source) -> str:
        """The keys, with those that make transformers load LLM-Drop's classes: without them, the lists are ignored."""
        kind = source.model.config.model_type
        classes = {
            "AutoConfig": f"configuration_dropped_{kind}.{LLM_DROP[kind]}Config",
            "AutoModelForCausalLM": f"modeling_dropped_{kind}.{LLM_DROP[kind]}ForCausalLM",
        }
        before = super().text_of(policy, source).rstrip().removesuffix("}").rstrip()
        return f'{before},\n  "auto_map": {json.dumps(classes)}\n}}\n'

    def notes(self, source: Source) -> list[str]:
        """See `TextTarget.notes`."""
        kind = source.model.config.model_type
        files = f"configuration_dropped_{kind}.py and modeling_dropped_{kind}.py of CASE-Lab-UMD/LLM-Drop"
        return [f"merge its keys into the config.json of a copy of the model, and put {files} beside it"]


class Swift(TextTarget):
    """A set of sublayers that SWIFT and Self-Speculative Decoding leave out while they draft."""

    name: ClassVar[str] = "swift"
    text: ClassVar[str] = f"{swift.FILE} of SWIFT and Self-Speculative Decoding: the policy as a draft of its model"

    def can(self, policy: Policy, source: Source) -> list[str]:
        """See `Target.can`."""
        last = source.model.config.get_text_config().num_hidden_layers - 1
        ends = [index for index in policy.canonical().layers if index in (0, last)]
        reasons = [f"SWIFT keeps its first and last layer, and the policy changes layer {index}" for index in ends]
        return [*super().can(policy, source), *reasons]

    def notes(self, source: Source) -> list[str]:
        """See `TextTarget.notes`."""
        return ["SWIFT looks for the key MODEL_TASK, of its --model-id and --task-name: rename the one in the file"]


class MergeKit(TextTarget):
    """A merge of one model with itself, of which some layers are left out."""

    name: ClassVar[str] = "mergekit"
    text: ClassVar[str] = f"a passthrough merge, {mergekit.FILE}, from which mergekit makes a checkpoint"

    def can(self, policy: Policy, source: Source) -> list[str]:
        """See `Target.can`."""
        reasons = super().can(policy, source)
        if with_model(policy, source).model.id is None:
            reasons.append("mergekit loads the model by its hub id or folder, and it has none")
        if source.model.config.get_text_config() is not source.model.config:
            return [*reasons, "mergekit's slices are of one text model, and this one has several parts"]
        return [*reasons, *self.unscaled(policy, source), *stale_fields(policy, source)]

    def text_of(self, policy: Policy, source: Source) -> str:
        """The merge, of which a folder has its whole path: the merge may be made anywhere."""
        name = policy.model.id
        if name is not None and Path(name).is_dir():
            name = str(Path(name).resolve())
        return super().text_of(
            policy.model_copy(update={"model": policy.model.model_copy(update={"id": name})}), source
        )

    def unscaled(self, policy: Policy, source: Source) -> list[str]:
        """The sublayers that are skipped alone and have no output projection of the name that is scaled by 0."""
        reasons = []
        layers = decoder_layers(source.model)
        for index, choice in policy.canonical().layers.items():
            if choice.label not in ("skip_attention", "skip_ffn"):
                continue
            scaled = mergekit.ATTENTION_OUT if choice.label == "skip_attention" else mergekit.FFN_OUT
            parts = layers[index].sublayers
            names = parts.attention_names if choice.label == "skip_attention" else parts.ffn_names
            weights = dict(layers[index].module.named_parameters())
            if not any(f"{name}.{scaled}.weight" in weights for name in names):
                reasons.append(f"{choice.label} in layer {index}: its output projection is not called {scaled}")
            elif not self.options.zero:
                reasons.append(f"{choice.label} in layer {index} is a scale of 0, which --no-zero forbids")
        return reasons

    def load_lines(self, source: Source, folder: str) -> list[str]:
        """See `Target.load_lines`."""
        return [f"mergekit-yaml {folder}/{mergekit.FILE} merged"]


def unknown_model(source: Source, known: Any, text: str) -> list[str]:
    """Why a tool does not load a model, where its type is not among the known ones."""
    kind = source.model.config.model_type
    return [] if kind in known else [f"{text} {', '.join(known)}, and this model is a {kind}"]


def stale_fields(policy: Policy, source: Source) -> list[str]:
    """Why mergekit cannot remove layers: fields of the configuration that would still describe the removed ones."""
    config = source.model.config
    removed = [index for index, choice in policy.canonical().layers.items() if choice.label == "skip_layer"]
    kept = [index for index in range(config.num_hidden_layers) if index not in removed]
    if not kept:
        return ["no layer is left"]
    if not removed:
        return []
    count = config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    before, after = config.to_dict(), config_without(source.model, kept).to_dict()
    stale = [key for key in before if key != count and before[key] != after.get(key)]
    text = "no skip_layer: mergekit leaves a field of the configuration as it is, for all layers"
    return [*depends_on_place(source.model, removed), *(f"{text}: {key}" for key in stale)]
