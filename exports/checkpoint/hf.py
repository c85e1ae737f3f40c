"""A plain checkpoint: skipped layers are gone and the rest is numbered anew; sublayers skipped alone are zeros."""

from pathlib import Path
from typing import ClassVar

from ...policies.families.layers import decoder_layers
from ...policies.policy import Policy
from ..reference import Reference, auto_class
from ..target import Source, Target, count_choices, named_choices
from .config_fields import config_without, depends_on_place
from .save import save_checkpoint
from .weights import state_without, sublayer_tensors

SCRIPT = Path(__file__).parent / "run.py"
SUBLAYERS = ("skip_attention", "skip_ffn")


class PlainCheckpoint(Target):
    """Loads in transformers, lm-eval, vLLM and what else reads checkpoints, with no code of skipsearch."""

    name: ClassVar[str] = "hf"
    text: ClassVar[str] = "a smaller plain checkpoint, for transformers, lm-eval, vLLM and llama.cpp's converter"

    def can(self, policy: Policy, source: Source) -> list[str]:
        """See `Target.can`."""
        reasons = [
            f"a plain checkpoint has no {choice}" for choice in named_choices(policy, ("skip_layer", *SUBLAYERS))
        ]
        removed = removed_layers(policy)
        if removed:
            reasons += depends_on_place(source.model, removed)
        if len(removed) == len(decoder_layers(source.model)):
            reasons.append("no layer is left")
        alone = named_choices(policy, [label for label in count_choices(policy) if label not in SUBLAYERS])
        if alone and getattr(source.model, "hf_quantizer", None) is not None:
            reasons.append(
                "the weights are quantised, and a skipped sublayer is written as zeros: load them unquantised"
            )
        if not self.options.zero:
            reasons += [f"{choice} would be written with weights of 0, which --no-zero forbids" for choice in alone]
        return reasons

    def write(self, policy: Policy, source: Source, folder: Path) -> list[str]:
        """See `Target.write`."""
        layers = decoder_layers(source.model)
        removed, choices = removed_layers(policy), policy.canonical().choices(len(layers))
        kept = [layer.index for layer in layers if layer.index not in removed]
        zeroed = {
            index: sublayer_tensors(
                layers[index], attention=choices[index].attention == "skip", ffn=choices[index].ffn == "skip"
            )
            for index in kept
        }
        config = config_without(source.model, kept)
        save_checkpoint(source, state_without(source.model, kept, zeroed), config, folder)
        alone = sum(choices[index].label in SUBLAYERS for index in kept)
        notes = [f"layers: {len(layers)} -> {len(kept)}; the weights, the time and the cache of the rest are saved"]
        if alone:
            notes.append(f"{alone} sublayers are zeros: exact, but they cost time, memory and cache as before")
        return notes

    def check(self, folder: Path, reference: Reference) -> float:
        """See `Target.check`."""
        dtype = str(reference.dtype).removeprefix("torch.")
        outputs = reference.run(
            SCRIPT, str(folder), reference.kind, dtype, reference.attention, python=self.options.python
        )
        return reference.difference(outputs)

    def load_lines(self, source: Source, folder: str) -> list[str]:
        """See `Target.load_lines`."""
        return [f'{auto_class(source.model)}.from_pretrained("{folder}")']


def removed_layers(policy: Policy) -> list[int]:
    """The layers that a policy skips for all tokens in both phases."""
    return [index for index, choice in policy.canonical().layers.items() if choice.label == "skip_layer"]
