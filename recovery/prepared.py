"""The policy that is trained: what can be, with adapters or routers where the method trains them."""

from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError

from ..policies.choice import LayerChoice
from ..policies.errors import UsageError
from ..policies.policy import Policy
from ..policies.scores.table import ROUTER
from ..policies.trained.adapters import adapted_layers
from ..policies.trained.routers import routed_layers
from .settings import RecoverySettings
from .subsets import refuse_too_few

HINT: Final = "train with --method lora or full, which leave the policy as it is"


def prepared_policy(policy: Policy, settings: RecoverySettings) -> Policy:
    """The policy to train, with adapters or routers where the method trains them.

    Raises:
        UsageError: it cannot be trained, or not with these settings.
    """
    if policy.weights is not None:
        hint = "start from the policy that it was trained for"
        raise UsageError("a policy with trained weights cannot be recovered again", hint=hint)
    if settings.method == "adapter":
        policy = with_adapters(policy)
    if settings.method == "router":
        policy = with_routers(policy)
    if settings.freeze and not adapted_layers(policy):
        hint = "train with --method adapter"
        raise UsageError("there is nothing to freeze", ["the policy has no `attention: adapter`"], hint)
    if settings.router_loss and not routed_layers(policy):
        reason = "no layer of it ranks image tokens by a router"
        raise UsageError("--router-loss needs routers", [reason], "leave it out, or train with --method router")
    if settings.skip is not None:
        refuse_too_few(policy, settings.skip)
    return policy


def with_adapters(policy: Policy) -> Policy:
    """The policy with an adapter in place of each attention that it skips for all tokens in both phases.

    Raises:
        UsageError: there is none, or another key of the policy does not go together with adapters.
    """
    layers = {index: adapted(choice) for index, choice in policy.canonical().layers.items()}
    changed = with_keys(policy, {"layers": layers}, "adapters cannot take the place of attentions in this policy")
    if not adapted_layers(changed):
        reason = "no layer of it skips its attention, and its attention alone, for all tokens in both phases"
        raise UsageError("the policy leaves no place to adapters", [reason], HINT)
    return changed


def adapted(choice: LayerChoice) -> LayerChoice:
    """A choice with an adapter in place of an attention that it skips; the choice itself where it has none to skip."""
    given = choice.model_dump(exclude_defaults=True, exclude={"ffn_ratio"})
    return choice.model_copy(update={"attention": "adapter"}) if given == {"attention": "skip"} else choice


def with_routers(policy: Policy) -> Policy:
    """The policy with routers in place of the score that it ranks image tokens by.

    Raises:
        UsageError: it leaves out no image tokens, or it does so in a way that routers cannot.
    """
    if policy.token_selection.score == ROUTER:
        return policy
    selection = {**policy.token_selection.model_dump(include={"reselect"}), "score": ROUTER}
    changed = with_keys(policy, {"token_selection": selection}, "routers cannot rank the image tokens of this policy")
    if not routed_layers(changed):
        raise UsageError("the policy leaves out no image tokens", ["no layer of it has a token_ratio"], HINT)
    return changed


def with_keys(policy: Policy, keys: Mapping[str, Any], refusal: str) -> Policy:
    """The policy with other values of some keys, beside the same files.

    Args:
        policy: The policy.
        keys: The values.
        refusal: What is wrong where the policy cannot have them.

    Raises:
        UsageError: with the reasons.
    """
    try:
        changed = Policy.model_validate({**policy.model_dump(by_alias=True), **keys})
    except ValidationError as cause:
        reasons = [one["msg"].removeprefix("Value error, ") for one in cause.errors()]
        raise UsageError(refusal, reasons, HINT) from None
    return changed if policy.folder is None else changed.beside(policy.folder)
