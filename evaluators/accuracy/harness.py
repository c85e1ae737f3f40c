"""lm-eval's model `skipsearch`: a model under a policy, for lm-eval's own commands and scripts."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lm_eval.__main__ import cli_evaluate
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from pydantic import ValidationError

from ...policies.apply import apply_policy
from ...policies.errors import EvaluatorError
from ...policies.policy import Policy
from ..subject import ModelSpec, load_subject
from .memo import Memo
from .model import lm_eval_model
from .text_model import TextModel

MODEL = {"revision", "dtype", "quantization", "attn_implementation", "trust_remote_code", "weights"}
# lm-eval's own arguments that change prompts and answers and not the model. All others are refused, because lm-eval
# ignores arguments such as `peft` for a model that is already loaded.
LM_EVAL = {
    "max_length", "add_bos_token", "prefix_token_id", "softmax_dtype", "think_end_token",
    "enable_thinking", "chat_template_args",
}  # fmt: skip


@register_model("skipsearch")
class PolicyModel(LM):
    """What lm-eval creates for `--model skipsearch`: a `TextModel` or an `ImageModel` that runs under a policy.

    Args:
        pretrained: The model's hub id or folder.
        policy: The path of the policy file.
        batch_size: Number of requests in a batch. lm-eval's `auto` is refused: it tries batches that are no requests,
            of which nothing says where the prompt ends.
        device: A device such as `cpu` or `cuda:1`; None, and lm-eval's default `cuda:0` on a machine without CUDA, take
            the first GPU where there is one and else the CPU.
        more: Other fields of `ModelSpec`, and lm-eval's arguments about prompts and answers (`LM_EVAL`).

    Raises:
        PolicyError: the policy cannot be read, or was made for another model.
        ModelError: the model cannot be loaded, or its layers cannot be wrapped.
        EvaluatorError: an argument is missing, unknown or wrong.
    """

    def __new__(
        cls,
        pretrained: str | None = None,
        policy: str | None = None,
        batch_size: int | str = 1,
        device: str | None = None,
        **more: Any,
    ) -> Any:
        """Load the model and apply the policy."""
        refuse_arguments({"pretrained": pretrained, "policy": policy}, more)
        if not str(batch_size).isdecimal():
            found = f"found {batch_size!r}, expected a number"
            raise EvaluatorError("--model skipsearch needs a fixed batch size", [found], "as in --batch_size 16")
        # lm-eval reads arguments that look like numbers as numbers.
        loaded_policy = Policy.load(str(policy))
        without_cuda = device == "cuda:0" and not torch.cuda.is_available()
        more = {"quantization": loaded_policy.model.quantization, **more}
        spec = model_spec(str(pretrained), "auto" if device is None or without_cuda else device, more)
        subject = load_subject(spec)
        settings = {name: value for name, value in more.items() if name in LM_EVAL}
        model: TextModel = lm_eval_model(subject, int(batch_size), Memo(0), **settings)
        model.handle = apply_policy(subject.model, loaded_policy)
        # lm-eval records these with its results.
        model.pretrained, model.revision = spec.id, spec.revision or "main"
        return model


def refuse_arguments(required: Mapping[str, Any], more: Mapping[str, Any]) -> None:
    """Refuse missing and unknown arguments of a model.

    Raises:
        EvaluatorError: naming them.
    """
    example = "as in --model_args pretrained=llava-hf/llava-1.5-7b-hf,policy=policy.yaml"
    if missing := [name for name, value in required.items() if value is None]:
        raise EvaluatorError(f"--model skipsearch needs {' and '.join(missing)}", hint=f"name them, {example}")
    if unknown := sorted({*more} - MODEL - LM_EVAL):
        known = f"expected {', '.join([*required, *sorted(MODEL), *sorted(LM_EVAL)])}"
        found = f"found {', '.join(unknown)}"
        raise EvaluatorError("--model skipsearch does not take these arguments", [found, known], "leave them out")


def model_spec(pretrained: str, device: str, more: Mapping[str, Any]) -> ModelSpec:
    """Which model lm-eval's arguments name.

    Raises:
        EvaluatorError: a value is wrong.
    """
    fields = {name: more[name] for name in MODEL & {*more}}
    if fields.get("revision") is not None:
        fields["revision"] = str(fields["revision"])
    try:
        return ModelSpec(id=pretrained, device=device, **fields)
    except ValidationError as cause:
        wrong = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}, found {one['input']!r}" for one in cause.errors()]
        raise EvaluatorError("arguments of --model skipsearch are wrong", wrong, "correct --model_args") from None


def run_lm_eval(arguments: Sequence[str]) -> None:
    """Run lm-eval's command line, with `--model skipsearch` among its models."""
    before = sys.argv
    sys.argv = ["lm-eval", *arguments]
    try:
        cli_evaluate()
    finally:
        sys.argv = before
