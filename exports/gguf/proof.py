"""The proof of a GGUF file: by llama.cpp where it is installed, else by reading the file back."""

import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...policies.errors import ExportError, ProofError
from ..checkpoint.run import NEW_TOKENS, Outputs
from ..reference import Reference, run_process

HERE = Path(__file__).parent
TEXT_INPUTS = {"input_ids", "attention_mask"}


def has_llama(python: Path | None) -> bool:
    """True where an environment has the package llama_cpp; None for the running one."""
    asked = "import importlib.util, sys; sys.exit(importlib.util.find_spec('llama_cpp') is None)"
    return subprocess.run([str(python or sys.executable), "-P", "-c", asked]).returncode == 0


def text_only(reference: Reference) -> Reference:
    """The reference on prompts without images.

    Raises:
        ExportError: there are none.
    """
    kept = [number for number, prompt in enumerate(reference.prompts) if prompt.keys() <= TEXT_INPUTS]
    if not kept:
        found = [f"found {', '.join(sorted(prompt))}" for prompt in reference.prompts]
        raise ExportError("no prompt is text alone", found, "add a prompt with input_ids and attention_mask only")
    pairs = [(reference.prompts[number], reference.outputs[number]) for number in kept]
    return replace(reference, prompts=[prompt for prompt, _ in pairs], outputs=[output for _, output in pairs])


def read_back(path: Path, reference: Reference) -> float:
    """The largest difference of the file, read back into transformers, from the model under the policy."""
    reference = text_only(reference)
    dtype = str(reference.dtype).removeprefix("torch.")
    return reference.difference(reference.run(HERE / "read_back.py", str(path), dtype, reference.attention))


def run_llama(path: Path, reference: Reference, texts: dict[str, list[int]], python: Path | None) -> float:
    """The largest difference of what llama.cpp computes from the model under the policy.

    Args:
        path: The file.
        reference: The model under the policy.
        texts: The tokens of some texts, which llama.cpp must find too.
        python: The interpreter of an environment with llama-cpp-python.

    Raises:
        ProofError: llama.cpp tokenizes a text in another way.
    """
    reference = text_only(reference)
    rows = [row for prompt in reference.prompts for row in prompt_rows(prompt)]
    request = {"prompts": rows, "new_tokens": NEW_TOKENS, "texts": list(texts)}
    with tempfile.TemporaryDirectory() as place:
        asked, written = Path(place) / "request.json", Path(place) / "results.npz"
        asked.write_text(json.dumps(request), encoding="utf-8")
        script = HERE / "run_llama.py"
        run_process([str(python or sys.executable), "-P", str(script), str(path), str(asked), str(written)])
        with np.load(written) as results:
            check_texts(texts, results)
            difference = reference.difference(outputs_from(reference, results))
    check_precision(difference, reference)
    return difference


def check_precision(difference: float, reference: Reference) -> None:
    """Say what helps where a half-precision model differs, which torch and llama.cpp round in different places.

    Raises:
        ProofError: the model is in half precision, and differs by more than is accepted.
    """
    if reference.dtype != torch.float32 and not difference <= reference.tolerance:
        raise ProofError(
            f"in {str(reference.dtype).removeprefix('torch.')}, llama.cpp computes something else than the policy",
            [f"found a difference of {difference:.2g}, accepted are {reference.tolerance:.0e}; nothing was kept"],
            "export with --dtype float32, which both round alike, and make the file smaller with llama-quantize",
        )


def prompt_rows(prompt: dict[str, torch.Tensor]) -> list[list[int]]:
    """The tokens of each row of a prompt, without padding."""
    ids = prompt["input_ids"]
    mask = prompt.get("attention_mask", torch.ones_like(ids)).bool()
    return [row[seen].tolist() for row, seen in zip(ids, mask, strict=True)]


def outputs_from(reference: Reference, results: Any) -> Outputs:
    """What llama.cpp computed in the shape of the reference; padded positions have logits of 0."""
    outputs, number = [], 0
    for prompt, expected in zip(reference.prompts, reference.outputs, strict=True):
        logits, tokens = torch.zeros_like(expected["logits"]), torch.zeros_like(expected["tokens"])
        mask = prompt.get("attention_mask", torch.ones_like(prompt["input_ids"])).bool()
        for row, seen in enumerate(mask):
            logits[row, seen] = torch.from_numpy(results[f"logits {number}"])
            tokens[row] = torch.from_numpy(results[f"tokens {number}"])
            number += 1
        outputs.append({"logits": logits, "tokens": tokens})
    return outputs


def check_texts(texts: dict[str, list[int]], results: Any) -> None:
    """Compare llama.cpp's tokens of texts with those of the model's own tokenizer.

    Raises:
        ProofError: they differ.
    """
    for number, (text, expected) in enumerate(texts.items()):
        found = results[f"text {number}"].tolist()
        if found != expected:
            raise ProofError(
                "llama.cpp's tokenizer makes other tokens than the model's own; nothing was kept",
                [f"text {text!r}", f"found {found}", f"expected {expected}"],
            )
