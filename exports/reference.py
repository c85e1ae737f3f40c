"""The proof of an export: outputs of the model under the policy, which the exported model must reproduce."""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..policies.apply import apply_policy
from ..policies.errors import ExportError
from ..policies.policy import Policy
from ..policies.pretrained import auto_class_of
from .checkpoint.run import Outputs, outputs_of
from .target import Source, with_model

# Largest accepted difference of logits, relative to the largest logit where that is above 1.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
PROMPT_LENGTHS = (24, 9)
PYTHON_HINT = "give the path of a Python interpreter, as in --python ~/env/bin/python"


@dataclass(frozen=True)
class Reference:
    """What the model under the policy computes for some prompts.

    Attributes:
        prompts: Inputs by argument name, on the CPU.
        outputs: For each prompt its `logits`, shape (rows, tokens, vocabulary), and the greedily generated `tokens`.
        dtype: The dtype of the model.
        kind: The auto class of transformers that loads the model.
        attention: The attention implementation that it runs with.
        policy: The policy, with the model that it is exported for.
        model_id: The hub id or folder from which the model was loaded.
    """

    prompts: list[dict[str, Tensor]]
    outputs: Outputs
    dtype: torch.dtype
    kind: str
    attention: str
    policy: Policy = Policy()
    model_id: str | None = None

    @classmethod
    def of(cls, policy: Policy, source: Source) -> "Reference":
        """Run the model under the policy."""
        model = source.model
        prompts = list(source.prompts) or random_prompts(model)
        with apply_policy(model, policy):
            outputs = outputs_of(model, prompts)
        attention = model.config.get_text_config()._attn_implementation or ""
        return cls(prompts, outputs, model.dtype, auto_class(model), attention, with_model(policy, source), source.id)

    @property
    def tolerance(self) -> float:
        """The largest accepted `difference`."""
        return TOLERANCE[self.dtype]

    def difference(self, outputs: Outputs) -> float:
        """The largest difference of logits from the reference, relative to its largest logit where that is above 1.

        Padded positions do not count. In float32 and float64, generated tokens that differ count as infinitely far.
        """
        if len(outputs) != len(self.outputs):
            return float("inf")
        pairs = zip(self.prompts, self.outputs, outputs, strict=True)
        return max(self._difference(prompt, expected, found) for prompt, expected, found in pairs)

    def _difference(self, prompt: dict[str, Tensor], expected: dict[str, Tensor], found: dict[str, Tensor]) -> float:
        exact = self.dtype in (torch.float32, torch.float64)
        if expected["logits"].shape != found["logits"].shape:
            return float("inf")
        if exact and not torch.equal(expected["tokens"], found["tokens"]):
            return float("inf")
        mask = prompt.get("attention_mask", torch.ones_like(prompt["input_ids"])).bool()
        apart = (expected["logits"] - found["logits"])[mask].abs().nan_to_num(nan=float("inf"))
        return float(apart.max() / expected["logits"][mask].abs().max().clamp_min(1))

    def run(self, script: Path, *arguments: str, python: Path | None = None) -> Outputs:
        """Run a script in a fresh process: it reads a file of prompts and writes a file of outputs.

        Args:
            script: The script; it gets the two files after the first of the arguments.
            arguments: Its arguments.
            python: The interpreter; None for the running one.

        Raises:
            ExportError: the process fails; the details have the end of what it printed.
        """
        with tempfile.TemporaryDirectory() as place:
            files = [str(Path(place) / name) for name in ("prompts.pt", "outputs.pt")]
            torch.save(self.prompts, files[0])
            # -P keeps the script's folder out of the search path, where its neighbours would shadow packages.
            command = [str(python or sys.executable), "-P", str(script), arguments[0], *files, *arguments[1:]]
            run_process(command)
            outputs: Outputs = torch.load(files[1])
        return outputs


def run_process(command: Sequence[str]) -> None:
    """Run a command that loads an export.

    Raises:
        ExportError: it does not start, or it fails; the details have the end of what it printed.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    except OSError as cause:
        raise unusable_interpreter(cause) from cause
    if done.returncode:
        raise ExportError("the export does not load", last_lines(done.stderr or done.stdout))


def unusable_interpreter(cause: OSError) -> ExportError:
    """The error for an interpreter that does not start."""
    return ExportError("the interpreter of --python does not run", [str(cause)], PYTHON_HINT)


def last_lines(text: str, count: int = 3) -> list[str]:
    """The last lines of what a process printed."""
    return [line for line in text.strip().splitlines() if line.strip()][-count:] or ["it printed nothing"]


def auto_class(model: PreTrainedModel) -> str:
    """The name of the auto class that loads a model."""
    return auto_class_of(model.config)


def random_prompts(model: PreTrainedModel, lengths: Sequence[int] = PROMPT_LENGTHS) -> list[dict[str, Tensor]]:
    """Prompts of random text, of one row each."""
    from ..policies.runtime.tokens import image_token_ids

    generator = torch.Generator().manual_seed(0)
    vocabulary = torch.arange(model.config.get_text_config().vocab_size)
    text = vocabulary[~torch.isin(vocabulary, torch.tensor(sorted(image_token_ids(model)), dtype=torch.long))]
    rows = [text[torch.randint(len(text), (1, length), generator=generator)] for length in lengths]
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in rows]
