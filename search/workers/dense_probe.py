"""Probes the dense model before the search, for the statistics that some baselines need."""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any, Final

from ...evaluators.base import IncrementalEvaluator
from ...evaluators.statistics import LayerStatistics, layer_statistics, on_device
from ...policies.choice import CHOICES, KEEP
from ...policies.policy import Policy
from ...policies.runtime.prefix import PrefixStates
from ..baselines.bandit import bandit
from ..baselines.dense_stats import DenseStats, any_needs_statistics
from ..baselines.registry import Choices
from .early_stopping import RUNG_FRACTIONS
from .evaluate import PolicyEvaluator

STATES_BYTES: Final = 1 << 30  # of hidden states that policies with the same first layers share


def probe_dense(evaluator: PolicyEvaluator, names: Sequence[str]) -> DenseStats:
    """Compute the statistics of the dense model that some baselines need, on examples of the search split.

    Args:
        evaluator: Holds the model and the evaluators.
        names: The baselines.

    Raises:
        SkipsearchError: the layers of the model cannot be taken apart, or a policy cannot be measured.
    """
    from ...evaluators.prompts import synthetic_prompt

    subject, domains = evaluator.subject, evaluator.space.domains(evaluator.num_layers)
    prompts = subject.prompts or [synthetic_prompt(subject, prompt_tokens=64)]
    layers: list[LayerStatistics] | None = None
    policies: Sequence[Choices] = []
    with forward_passes(subject.model) as forwards:
        if any_needs_statistics(names):
            layers = layer_statistics(subject.model, prompts, ranks="arank" in names)
            frozen = frozen_divergences(evaluator, prompts) if "shortv" in names else {}
            layers = [replace(layer, frozen_divergence=frozen.get(index)) for index, layer in enumerate(layers)]
        if "bandit" in names:
            policies = bandit(domains, bandit_loss(evaluator, prompts), seed=evaluator.space.search.seed)
    return DenseStats(layers, policies, len(forwards))


def bandit_loss(evaluator: PolicyEvaluator, prompts: Sequence[Mapping[str, Any]]) -> Callable[[Choices], float]:
    """The loss that the bandit minimises: the divergence of a policy from the dense model, in nats per token.

    It is the space's own divergence on the first rung of its examples. A space without one uses the divergence of the
    first answer token after each prompt.
    """
    own = next(
        (one for one in evaluator.evaluators if isinstance(one, IncrementalEvaluator) and one.name == "divergence"),
        None,
    )
    if own is None:
        return first_token_divergence(evaluator, prompts)

    def loss(choices: Choices) -> float:
        with (
            evaluator.applied(Policy.of(choices)) as handle,
            closing(own.rungs(handle, "search", RUNG_FRACTIONS)) as rungs,
        ):
            return next(rungs)["divergence"].value

    return loss


def first_token_divergence(
    evaluator: PolicyEvaluator, prompts: Sequence[Mapping[str, Any]]
) -> Callable[[Choices], float]:
    """KL(dense || policy) of the first token after a prompt, in nats, averaged over the prompts."""
    import torch

    from ...evaluators.predictions import divergence

    states = PrefixStates(STATES_BYTES)

    def log_probabilities(policy: Policy) -> torch.Tensor:
        logits = []
        with evaluator.applied(policy) as handle:
            for number, prompt in enumerate(prompts):
                with states.reused(handle, number):
                    inputs = on_device(prompt, handle.model)
                    logits.append(handle.model(**inputs, use_cache=False).logits[0, -1])
        return torch.stack(logits).float().log_softmax(dim=-1)

    dense = log_probabilities(Policy())
    return lambda choices: statistics.fmean(divergence(dense, log_probabilities(Policy.of(choices))).tolist())


def frozen_divergences(evaluator: PolicyEvaluator, prompts: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """By layer, KL(dense || image tokens frozen in that layer alone), for the layers that may freeze them.

    The policies share their layers before the frozen one with the dense model, which run once.
    """
    domains = evaluator.space.domains(evaluator.num_layers)
    frozen = CHOICES["freeze_image"]
    layers = [index for index, domain in enumerate(domains) if frozen in domain]
    if not layers:
        return {}
    loss = first_token_divergence(evaluator, prompts)
    return {layer: loss([frozen if index == layer else KEEP for index in range(len(domains))]) for layer in layers}


@contextmanager
def forward_passes(model: Any) -> Iterator[list[None]]:
    """Count the forward passes of a model while the context is open: the list gets one entry for each."""
    passes: list[None] = []
    hook = model.register_forward_hook(lambda *_: passes.append(None))
    try:
        yield passes
    finally:
        hook.remove()
