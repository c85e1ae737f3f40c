"""Finds out what baselines need to know of the dense model, before the search begins."""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any

from ...evaluators.base import IncrementalEvaluator
from ...evaluators.statistics import layer_statistics, on_device
from ...policies.policy import Policy
from ..baselines.bandit import bandit
from ..baselines.dense_stats import DenseStats, any_needs_statistics
from ..baselines.registry import Choices
from ..space.space import Racing
from .early_stopping import shares
from .evaluate import PolicyEvaluator


def probe_dense(evaluator: PolicyEvaluator, names: Sequence[str]) -> DenseStats:
    """Find out what some rules need, on examples of the search split.

    Raises:
        SkipsearchError: the layers of the model cannot be taken apart, or a policy cannot be measured.
    """
    from ...evaluators.prompts import synthetic_prompt

    subject, domains = evaluator.subject, evaluator.space.domains(evaluator.num_layers)
    prompts = subject.prompts or [synthetic_prompt(subject, prompt_tokens=64)]
    found, policies = None, []
    with counted(subject.model) as forwards:
        if any_needs_statistics(names):
            found = layer_statistics(subject.model, prompts, ranks="arank" in names)
        if "bandit" in names:
            policies = bandit(domains, divergence_on(evaluator, prompts), seed=evaluator.space.search.seed)
    return DenseStats(found, policies, len(forwards))


def divergence_on(evaluator: PolicyEvaluator, prompts: Sequence[Mapping[str, Any]]) -> Callable[[Choices], float]:
    """What tells the bandit how far a policy is from the dense model, in nats a token.

    The space's own divergence on the first share of its examples; where it has none, that of the first token of the
    answer to each of some prompts.
    """
    own = next(
        (one for one in evaluator.evaluators if isinstance(one, IncrementalEvaluator) and one.name == "divergence"),
        None,
    )
    if own is None:
        return on_prompts(evaluator, prompts)
    racing = evaluator.space.search.racing
    parts = shares(Racing() if racing == "none" else racing)

    def on_examples(choices: Choices) -> float:
        with evaluator.applied(Policy.of(choices)) as handle, closing(own.rungs(handle, "search", parts)) as rungs:
            return next(rungs)["divergence"].value

    return on_examples


def on_prompts(evaluator: PolicyEvaluator, prompts: Sequence[Mapping[str, Any]]) -> Callable[[Choices], float]:
    """KL(dense || policy) of the token that comes after each prompt; the mean, in nats."""
    import torch

    from ...evaluators.predictions import divergence

    def predicted(policy: Policy) -> torch.Tensor:
        with evaluator.applied(policy) as handle:
            model = handle.model
            rows = [model(**on_device(prompt, model), use_cache=False).logits[0, -1] for prompt in prompts]
            return torch.stack(rows).float().log_softmax(dim=-1)

    dense = predicted(Policy())
    return lambda choices: statistics.fmean(divergence(dense, predicted(Policy.of(choices))).tolist())


@contextmanager
def counted(model: Any) -> Iterator[list[None]]:
    """One entry for each forward pass of a model while the context is open."""
    passes: list[None] = []
    hook = model.register_forward_hook(lambda *_: passes.append(None))
    try:
        yield passes
    finally:
        hook.remove()
