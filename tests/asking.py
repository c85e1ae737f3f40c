"""Searches without workers: a study, a cheap stand-in for a model, and the loop that spends a budget."""

import searching

from skipsearch.evaluators.base import Measurement
from skipsearch.policies.policy import Policy
from skipsearch.search.driver.proposals import Proposals
from skipsearch.search.study.study import SearchStudy
from skipsearch.search.trial.outcome import Outcome

LAYERS = 4
SAMPLERS = ["auto", "nsga2", "nsga3", "tpe", "random"]


def open_study(path, folder, resume=False, **overrides):
    return SearchStudy(folder / "study.db", "tiny", searching.loaded(path, **overrides).space, LAYERS, resume)


def measured(policy: Policy, layers: int = LAYERS) -> Outcome:
    """A cheap stand-in for a model: what is left out costs accuracy, unequally by layer."""
    cost, loss = 0.0, 0.0
    for index, choice in enumerate(policy.choices(layers)):
        share = 1 - 0.4 * (choice.attention == "skip") - 0.6 * (choice.ffn == "skip")
        share *= 1 if choice.token_ratio is None else 0.3 + 0.7 * choice.token_ratio
        cost += share
        loss += (1 - share) ** 2 / (index + 2) + 0.01 * (choice.wiring == "parallel")
    values = {"accuracy": max(0.0, 0.9 - loss), "prefill_flops": 1e6 * cost}
    return Outcome({name: Measurement(value) for name, value in values.items()}, {"total": 0.1, "forward": 0.09})


def spend(study, stop_after=None):
    proposals, order = Proposals(study), []
    while stop_after is None or len(order) < stop_after:
        proposal = proposals.next()
        if proposal is None:
            break
        order.append(proposal.policy.fingerprint)
        proposals.finish(proposal, measured(proposal.policy))
    return order
