"""The plug-in of vLLM: a model whose configuration has the key `skipsearch` runs under that policy.

vLLM calls `register` in each of its processes (entry point `vllm.general_plugins`). The module imports nothing that an
environment for vLLM lacks, because transformers may be older there than skipsearch needs.
"""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from ...policies.errors import ExportError
from .surgery import LeftOut, leave_out

KEY = "skipsearch"
# What the other keys of a choice say where they change nothing.
NEUTRAL = {
    "wiring": "sequential",
    "norm": "own",
    "token_ratio": None,
    "rest": "skip",
    "evict": False,
    "phase": "both",
    "tokens": "all",
}
SUBLAYERS = ("attention", "ffn")

# A child of vLLM's own logger, so that its lines look like vLLM's.
logger = logging.getLogger("vllm.skipsearch")


def register() -> None:
    """Let every loader of weights apply the policy of a model's configuration; may be called several times."""
    from vllm.model_executor.model_loader.base_loader import BaseModelLoader

    make = BaseModelLoader.__init__
    if getattr(make, KEY, False):
        return

    def make_loader(self: Any, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        # On the instance, because loaders for some formats have a `load_model` of their own.
        self.load_model = partial(load_under_policy, self.load_model)

    setattr(make_loader, KEY, True)
    BaseModelLoader.__init__ = make_loader


def load_under_policy(load: Callable[..., nn.Module], vllm_config: Any, model_config: Any, **more: Any) -> nn.Module:
    """Load a model, and leave out what the policy in its configuration skips; without a policy, only load it.

    Raises:
        ExportError: vLLM cannot run the policy on this model.
    """
    value = policy_value(model_config)
    if value is None:
        return load(vllm_config=vllm_config, model_config=model_config, **more)
    layers = skipped(value)
    refuse_settings(vllm_config)
    model = load(vllm_config=vllm_config, model_config=model_config, **more)
    compilation = vllm_config.compilation_config
    caches = leave_out(model, layers, value["num_layers"], compilation)
    described = ", ".join(f"{index}: {' and '.join(sorted(parts))}" for index, parts in sorted(layers.items()))
    logger.info("skipsearch: left out of the layers {%s}; layers with a cache: %d -> %d", described, *caches)
    return model


def policy_value(model_config: Any) -> Any:
    """What a model's configuration, or that of its text half, has under the key; None where it has none."""
    configs = (model_config.hf_config, getattr(model_config, "hf_text_config", None))
    return next((value for config in configs if (value := getattr(config, KEY, None)) is not None), None)


def skipped(value: Any) -> dict[int, LeftOut]:
    """The sublayers that each layer leaves out; layers that leave out none are not listed.

    Args:
        value: The number of layers, and the choices of a policy file: `{"num_layers": 32, "layers": {"3": {"ffn":
            "skip"}}}`.

    Raises:
        ExportError: it has another form, or a choice that vLLM cannot run.
    """
    form = isinstance(value, Mapping) and {*value} == {"num_layers", "layers"} and isinstance(value["layers"], Mapping)
    if not form:
        raise ExportError(
            "the policy in the model's configuration has another form",
            [f'{KEY}: found {value!r}, expected {{"num_layers": N, "layers": {{"3": {{"ffn": "skip"}}}}}}'],
            f"pass the file hf_overrides.json that `{KEY} export POLICY --to vllm` writes",
        )
    wrong = [line for index, choice in value["layers"].items() for line in unknown(index, choice, value["num_layers"])]
    if wrong:
        raise ExportError(
            "vLLM cannot run this policy",
            wrong,
            "vLLM can skip sublayers and layers for all tokens in both phases; `skipsearch serve` runs the rest",
        )
    found = {int(index): choice for index, choice in value["layers"].items()}
    parts = {
        index: frozenset(part for part in SUBLAYERS if choice.get(part) == "skip") for index, choice in found.items()
    }
    return {index: left for index, left in parts.items() if left}


def unknown(index: object, choice: object, num_layers: object) -> list[str]:
    """One line for each key of a layer's choice that vLLM cannot run, and for a layer that the model cannot have."""
    if not isinstance(num_layers, int) or str(index) not in map(str, range(num_layers)):
        return [f"layer {index}: found {index!r}, expected a number below num_layers, which is {num_layers!r}"]
    if not isinstance(choice, Mapping):
        return [f"layer {index}: found {choice!r}, expected a mapping"]
    return [
        f"layer {index}: {key} {value}"
        for key, value in choice.items()
        if not (value in ("run", "skip") if key in SUBLAYERS else key in NEUTRAL and value == NEUTRAL[key])
    ]


def refuse_settings(vllm_config: Any) -> None:
    """Refuse the settings of vLLM that need every layer to be whole.

    Raises:
        ExportError: naming them.
    """
    parallel = vllm_config.parallel_config
    found = []
    if parallel.pipeline_parallel_size > 1:
        found.append(f"pipeline_parallel_size is {parallel.pipeline_parallel_size}: each part expects its own layers")
    if getattr(parallel, "enable_eplb", False):
        found.append("enable_eplb is set: it moves the experts of all layers")
    if found:
        raise ExportError("vLLM cannot run a policy with these settings", found, "start vLLM without them")
