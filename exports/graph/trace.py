"""A model under a policy as a graph of operations, with nothing of what the policy skips."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from inspect import Parameter, Signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from transformers import PreTrainedModel

from ...policies.apply import apply_policy
from ...policies.errors import ExportError
from ...policies.families.model_errors import is_out_of_memory
from ...policies.policy import Policy
from ..checkpoint.run import forget, placed
from ..reference import random_prompts
from ..target import Source


class Logits(nn.Module):
    """The logits of a model, without a cache, in float32.

    Args:
        model: The model.
        names: Its inputs. torch.export takes the names of a graph's inputs from the signature of `forward`.
    """

    def __init__(self, model: PreTrainedModel, names: Iterable[str]) -> None:
        super().__init__()
        self.model = model
        parameters = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in names]

        def forward(*args: Tensor, **inputs: Tensor) -> Tensor:
            named = dict(zip(names, args, strict=False))
            logits: Tensor = model(**named, **inputs, use_cache=False).logits
            return logits.float()

        forward.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        self.forward = forward


def trace(policy: Policy, source: Source) -> ExportedProgram:
    """Trace a model under a policy; the number of tokens stays free, and that of rows where the input is text alone.

    Raises:
        ExportError: torch.export cannot trace the model.
    """
    model, inputs = source.model, example_inputs(source)
    shapes = free_dimensions(inputs)
    forget(model)
    try:
        with apply_policy(model, policy), experts_of_torch(model), torch.no_grad():
            program = torch.export.export(Logits(model, inputs).eval(), (), inputs, dynamic_shapes=shapes, strict=False)
    except Exception as cause:
        if is_out_of_memory(cause):
            raise
        # A trace runs the model's own code, which can raise anything.
        reason = f"{type(cause).__name__}: {cause}".splitlines()[0]
        hint = "take another target; `--to list` shows those that can"
        raise ExportError(f"torch.export cannot trace {type(model).__name__}", [reason], hint) from cause
    drop_unused(program)
    return program


@contextmanager
def experts_of_torch(model: PreTrainedModel) -> Iterator[None]:
    """Let a mixture of experts use operations of torch alone in this context.

    By default it uses one that transformers defines, which is unknown to a process without transformers.
    """
    text = model.config.get_text_config()
    own = text._experts_implementation
    text._experts_implementation = "batched_mm"
    try:
        yield
    finally:
        text._experts_implementation = own


def drop_unused(program: ExportedProgram) -> None:
    """Drop operations without an effect, and weights that no operation reads; torch.export keeps all weights."""
    # Such as the pooled output of a vision model, which a language model does not read.
    program.graph.eliminate_dead_code()
    nodes = {node.name: node for node in program.graph.find_nodes(op="placeholder")}
    specs = program.graph_signature.input_specs
    unused = [spec for spec in specs if spec.target is not None and not nodes[spec.arg.name].users]
    for spec in unused:
        program.graph.erase_node(nodes[spec.arg.name])
        specs.remove(spec)
        program.state_dict.pop(spec.target, None)
        program.constants.pop(spec.target, None)
    program.graph_module.recompile()


def graph_prompt(source: Source) -> dict[str, Tensor]:
    """The prompt whose inputs the graph has: the first."""
    return (list(source.prompts) or random_prompts(source.model))[0]


def example_inputs(source: Source) -> dict[str, Tensor]:
    """The inputs to trace with; two rows of text, because a dimension of size 1 would not stay free."""
    prompt = placed(source.model, graph_prompt(source))
    return {name: torch.cat([value, value]) for name, value in prompt.items()} if is_text(prompt) else prompt


def is_text(prompt: dict[str, Tensor]) -> bool:
    """True where each input has one number a token."""
    return all(value.shape == prompt["input_ids"].shape for value in prompt.values())


def free_dimensions(inputs: dict[str, Tensor]) -> dict[str, dict[int, Any] | None]:
    """By input, the dimensions whose size stays free."""
    free = dict.fromkeys((0, 1) if is_text(inputs) else (1,), Dim.DYNAMIC)
    shape = inputs["input_ids"].shape
    return {name: free if value.shape == shape else None for name, value in inputs.items()}
