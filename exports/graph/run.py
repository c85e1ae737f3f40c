"""A script: runs a graph on prompts, in its own tool.

The script imports torch and the tool alone, because it must also run in an environment without skipsearch.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Inputs = dict[str, Tensor]
Run = Callable[[Inputs], Tensor]


def load_torch_export(file: str) -> Run:
    """A program of torch.export."""
    module = torch.export.load(file).module()
    return lambda inputs: module(**inputs)


def load_onnx(file: str) -> Run:
    """An ONNX graph in ONNX Runtime, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    return lambda inputs: torch.from_numpy(session.run(None, {name: inputs[name].numpy() for name in names})[0])


def load_openvino(file: str) -> Run:
    """A graph of OpenVINO, on the CPU in float32; without that hint, some CPUs run bfloat16."""
    import openvino

    model = openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    names = [entry.get_any_name() for entry in model.inputs]
    return lambda inputs: torch.from_numpy(model({name: inputs[name].numpy() for name in names})[0].copy())


TOOLS = {"torch-export": load_torch_export, "onnx": load_onnx, "openvino": load_openvino}


def outputs_of(run: Run, prompt: Inputs, new_tokens: int) -> Inputs:
    """The logits of a prompt and its greedily generated tokens; a graph has no cache, so each step runs all tokens."""
    logits = last = run(prompt)
    for step in range(new_tokens):
        if step:
            last = run(prompt)
        prompt = extended(prompt, last[:, -1:].argmax(-1))
    return {"logits": logits, "tokens": prompt["input_ids"][:, -new_tokens:]}


def extended(prompt: Inputs, token: Tensor) -> Inputs:
    """The inputs with one more token of text, shape (rows, 1)."""
    added: dict[str, Any] = {"input_ids": token, "attention_mask": torch.ones_like(token)}
    shape = prompt["input_ids"].shape
    return {
        name: torch.cat([value, added.get(name, torch.zeros_like(token)).to(value.dtype)], dim=1)
        if value.shape == shape
        else value
        for name, value in prompt.items()
    }


def main() -> None:
    """Load a graph, run the prompts of a file and save the outputs to another."""
    file, prompts, outputs, tool, new_tokens = sys.argv[1:]
    for package in ("skipsearch", "transformers"):
        sys.modules[package] = None  # type: ignore[assignment]  # a graph that needs it fails
    run = TOOLS[tool](file)
    with torch.no_grad():
        torch.save([outputs_of(run, prompt, int(new_tokens)) for prompt in torch.load(prompts)], outputs)


if __name__ == "__main__":
    main()
