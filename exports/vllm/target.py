"""A folder for vLLM, which runs the policy in its configuration through skipsearch's plug-in."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...policies.errors import ExportError
from ...policies.families.layers import decoder_layers
from ...policies.policy import Policy
from ..checkpoint.run import Outputs
from ..reference import PYTHON_HINT, Reference, last_lines, unusable_interpreter
from ..target import Source, Target, count_choices, named_choices
from .files import write_files
from .plugin import KEY

SCRIPT = Path(__file__).parent / "run.py"
OVERRIDES = "hf_overrides.json"
CHOICES = ("skip_attention", "skip_ffn", "skip_layer")
INSTALL = "-m pip install --no-deps skipsearch"
# Prints what an environment lacks.
PROBE = f"""
from importlib.metadata import entry_points
from importlib.util import find_spec
if find_spec("vllm") is None:
    print("vLLM")
elif "{KEY}" not in entry_points(group="vllm.general_plugins").names:
    print("plug-in")
"""
TEXT_KEYS = {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"}


class VllmFolder(Target):
    """`vllm serve` loads it as it loads the dense model, and leaves out what the policy skips, with its cache."""

    name: ClassVar[str] = "vllm"
    text: ClassVar[str] = (
        "the dense checkpoint with the policy in its configuration, for vLLM with skipsearch's plug-in"
    )

    def can(self, policy: Policy, source: Source) -> list[str]:
        """See `Target.can`."""
        reasons = [f"vLLM skips whole sublayers and layers: no {choice}" for choice in named_choices(policy, CHOICES)]
        if source.model.dtype == torch.float64:
            reasons.append("vLLM has no float64")
        choices = policy.choices(len(decoder_layers(source.model)))
        if all(choice.attention == "skip" for choice in choices):
            reasons.append("the policy skips every attention, and vLLM needs one layer with a cache")
        return reasons

    def write(self, policy: Policy, source: Source, folder: Path) -> list[str]:
        """See `Target.write`."""
        require_vllm(self.options.python)
        value = config_value(policy, len(decoder_layers(source.model)))
        weights = write_files(source, KEY, value, folder)
        (folder / OVERRIDES).write_text(json.dumps({KEY: value}) + "\n", encoding="utf-8")
        counts = count_choices(policy)
        without_cache = counts.get("skip_attention", 0) + counts.get("skip_layer", 0)
        return [
            weights,
            f"vLLM loads all weights and frees those of the skipped parts; {without_cache} layers get no cache",
            "without skipsearch's plug-in vLLM runs the dense model, and so does every other tool; with it, vLLM "
            "prints a line that begins with `skipsearch: left out`",
        ]

    def check(self, folder: Path, reference: Reference) -> float:
        """See `Target.check`; compares log-probabilities of text."""
        rows = text_rows(reference)
        dtype = str(reference.dtype).removeprefix("torch.")
        return difference(rows, rows.run(SCRIPT, str(folder), dtype, python=self.options.python))

    def load_lines(self, source: Source, folder: str) -> list[str]:
        """See `Target.load_lines`."""
        dtype = str(source.model.dtype).removeprefix("torch.")
        lines = [f"python {INSTALL}  # in the environment of vLLM", f"vllm serve {folder} --dtype {dtype}"]
        if source.id is not None:
            revision = f" --revision {source.revision}" if source.revision else ""
            overrides = f'--hf-overrides "$(cat {folder}/{OVERRIDES})"'
            lines.append(f"vllm serve {source.id}{revision} --dtype {dtype} {overrides}  # the same")
        return lines


def config_value(policy: Policy, num_layers: int) -> dict[str, Any]:
    """What the configuration of a model has under the key: the number of layers, and the choices of the policy file."""
    layers = {str(index): choice for index, choice in policy.document()["layers"].items()}
    return {"num_layers": num_layers, "layers": layers}


def require_vllm(python: Path | None) -> None:
    """Refuse an environment without vLLM or without the plug-in, before anything is written.

    Raises:
        ExportError: saying which one is missing, and what to do.
    """
    interpreter = str(python or sys.executable)
    try:
        done = subprocess.run([interpreter, "-P", "-c", PROBE], capture_output=True, text=True, check=True)
    except OSError as cause:
        raise unusable_interpreter(cause) from cause
    except subprocess.CalledProcessError as cause:
        raise ExportError(f"{interpreter} does not run", last_lines(cause.stderr), PYTHON_HINT) from cause
    missing = done.stdout.strip()
    if missing == "vLLM":
        hint = "give the interpreter of an environment that has it, as in --python ~/vllm/bin/python"
        raise ExportError("an export to vllm is compared with what vLLM computes", [f"no vLLM in {interpreter}"], hint)
    if missing:
        hint = f"install it: {interpreter} {INSTALL}"
        raise ExportError("vLLM lacks the plug-in of skipsearch", [f"no entry point {KEY} in {interpreter}"], hint)


def text_rows(reference: Reference) -> Reference:
    """The prompts without images, one for each row.

    Rows with padding are left out: in transformers, padding moves the positions of models like GPT-2.

    Raises:
        ExportError: none is left.
    """
    prompts, outputs = [], []
    for prompt, expected in zip(reference.prompts, reference.outputs, strict=True):
        mask = prompt.get("attention_mask", torch.ones_like(prompt["input_ids"])).bool()
        for row in mask.all(1).nonzero()[:, 0].tolist() if is_text(prompt) else []:
            prompts.append({"input_ids": prompt["input_ids"][[row]]})
            outputs.append({key: value[[row]] for key, value in expected.items()})
    if not prompts:
        raise ExportError(
            "an export to vllm is compared on text",
            [f"found {len(reference.prompts)} prompts, all with an image or with padding"],
            "add a prompt of text to the prompts of the source",
        )
    return replace(reference, prompts=prompts, outputs=outputs)


def is_text(prompt: dict[str, Tensor]) -> bool:
    """True for a prompt without an image."""
    return {*prompt} <= TEXT_KEYS and not any(prompt[key].any() for key in {*prompt} & {"mm_token_type_ids"})


def difference(reference: Reference, found: Outputs) -> float:
    """The largest difference of the log-probabilities that vLLM lists; see `Reference.difference`."""
    pairs = list(zip(reference.outputs, found, strict=True))
    expected = [
        {**known, "logits": torch.log_softmax(known["logits"], -1).gather(-1, output["ids"])} for known, output in pairs
    ]
    listed = [{"logits": output["log_probabilities"], "tokens": output["tokens"]} for _, output in pairs]
    return replace(reference, outputs=expected).difference(listed)
