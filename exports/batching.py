"""Continuous batching in transformers' server, and what it would answer wrongly."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..policies.errors import ExportError, UsageError
from .target import Source

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig
    from transformers.cli.serving.utils import GenerationState

# transformers' server is imported where it is used, because it is optional.
BATCHING_LOG = "ContinuousBatchingLogger"
CPU_CACHE_TOKENS, CPU_BATCH_TOKENS = 32768, 512
# Settings of `generate` that a request may set for itself or that change no answer, and those that greedy decoding
# does not read.
PER_REQUEST = {"max_new_tokens", "eos_token_id", "pad_token_id", "bos_token_id", "use_cache", "transformers_version"}
SAMPLING = {"temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"}


@dataclass(frozen=True)
class Batching:
    """How requests share the model.

    Attributes:
        cache_tokens: How many tokens the cache holds for all requests together; None takes what fits on a GPU, and
            32,768 on the CPU, where transformers would take nine tenths of all memory.
    """

    cache_tokens: int | None = None

    def generation_state(self, device: "torch.device") -> "GenerationState":
        """The state of the server's generation, which refuses requests that would be answered with other settings."""
        from transformers import ContinuousBatchingConfig
        from transformers.cli.serving.utils import GenerationState

        class OneSetting(GenerationState):
            def get_manager(self, model_id: str, use_cb: bool = False) -> Any:
                manager = super().get_manager(model_id, use_cb=use_cb)
                if "init_cb" not in vars(manager):
                    vars(manager)["init_cb"] = agreeing(manager.init_cb)
                return manager

        on_cpu = device.type == "cpu"
        config = ContinuousBatchingConfig(max_batch_tokens=CPU_BATCH_TOKENS if on_cpu else None)
        tokens = self.cache_tokens or (CPU_CACHE_TOKENS if on_cpu else None)
        config.num_blocks = None if tokens is None else -(-tokens // config.page_size)
        return OneSetting(continuous_batching=True, cb_config=config)

    def refuse_unbatchable(self, source: Source) -> None:
        """Generate two tokens with continuous batching, so that what it cannot run shows now and not in a request.

        Raises:
            ExportError: it cannot run the policy or the model.
        """
        from transformers import PreTrainedTokenizerBase

        name, hint = type(source.model).__name__, "leave out --continuous-batching"
        if not isinstance(source.processor, PreTrainedTokenizerBase):
            reasons = ["the server batches requests to text models alone"]
        else:
            reasons = batching_errors(source.model)
        if reasons:
            raise ExportError(f"continuous batching cannot run {name} under this policy", reasons, hint)


def batching_errors(model: Any) -> list[str]:
    """What goes wrong where a model generates two tokens with continuous batching; empty where nothing does."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    settings = GenerationConfig(max_new_tokens=2, do_sample=False)
    sizes = ContinuousBatchingConfig(num_blocks=8, page_size=16, max_batch_tokens=16, max_requests_per_batch=1)
    attention, logger = model.config._attn_implementation, logging.getLogger(BATCHING_LOG)
    before = logger.level
    # The batch runs in another thread, which logs the error and hands it over as text.
    logger.setLevel(logging.CRITICAL)
    try:
        answers = model.generate_batch(
            inputs=[[1, 2, 3]], generation_config=settings, continuous_batching_config=sizes, warmup=False
        )
    except (RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError) as cause:
        return [f"{type(cause).__name__}: {cause}"]
    finally:
        logger.setLevel(before)
        model.set_attn_implementation(attention)
    if not answers:
        return ["it gave no answer"]
    lines = [line.strip() for answer in answers.values() for line in (answer.error or "").splitlines()]
    return [line for line in lines if not line.startswith("hint:")]


def agreeing(start: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    """The function that starts continuous batching for a request, with a check of all requests after the first.

    transformers samples every answer with the settings of the first request, and stops at no text. Other requests
    would get answers of another kind than they asked for.
    """
    settings: list[dict[str, Any]] = []

    def start_or_refuse(model: Any, config: "GenerationConfig") -> None:
        found = settings_of(config)
        what = "continuous batching answers all requests with the settings of the first"
        hint = "send the same settings with every request, or serve without --continuous-batching"
        if config.stop_strings:
            raise UsageError("continuous batching stops at no text", ["found `stop`"], hint)
        settings.append(found)
        first = settings[0]
        differing = [name for name in {**first, **found} if first.get(name) != found.get(name)]
        if differing:
            lines = [f"{name}: found {found.get(name)}, expected {first.get(name)}" for name in differing]
            raise UsageError(what, lines, hint)
        start(model, config)

    return start_or_refuse


def settings_of(config: "GenerationConfig") -> dict[str, Any]:
    """The settings of `generate` that all requests share, without those that are off."""
    unread = PER_REQUEST if config.do_sample else PER_REQUEST | SAMPLING
    settings = {name: value for name, value in config.to_dict().items() if value not in (None, False)}
    return {name: value for name, value in settings.items() if name not in unread and not name.startswith("_")}
