"""The policy that is trained: what can be, with adapters or routers where the method trains them."""

from pydantic import ValidationError

from ..policies.errors import UsageError
from ..policies.policy import Policy
from ..policies.scores.table import ROUTER
from ..policies.trained.adapters import adapted_layers
from ..policies.trained.routers import routed_layers
from .adapters import with_adapters
from .settings import RecoverySettings
from .subsets import refuse_too_few


def prepared_policy(policy: Policy, settings: RecoverySettings) -> Policy:
    """The policy to train, with adapters where the method trains them.

    Raises:
        UsageError: it cannot be trained, or not by the method.
    """
    if policy.weights is not None:
        hint = "start from the policy that it was trained for"
        raise UsageError("a policy with trained weights cannot be recovered again", hint=hint)
    if settings.method == "adapter":
        policy = with_adapters(policy)
    if settings.freeze and not adapted_layers(policy):
        hint = "train with --method adapter"
        raise UsageError("there is nothing to freeze", ["the policy has no `attention: adapter`"], hint)
    if settings.skip is not None:
        refuse_too_few(policy, settings.skip)
    return policy


def with_routers(policy: Policy) -> Policy:
    """The policy with routers in place of the score that it ranks image tokens by.

    Raises:
        UsageError: it leaves out no image tokens, or it does so in a way that routers cannot.
    """
    if policy.token_selection.score == ROUTER:
        return policy
    selection = {**policy.token_selection.model_dump(include={"reselect"}), "score": ROUTER}
    try:
        routed = Policy.model_validate({**policy.model_dump(by_alias=True), "token_selection": selection})
    except ValidationError as cause:
        reasons = [one["msg"].removeprefix("Value error, ") for one in cause.errors()]
        hint = "train with --method lora or full, which keep the policy's own score"
        raise UsageError("routers cannot rank the image tokens of this policy", reasons, hint) from None
    if not routed_layers(routed):
        reason = "no layer of it has a token_ratio"
        raise UsageError("the policy leaves out no image tokens", [reason], "train with --method lora or full")
    return routed


def with_asked_routers(policy: Policy, settings: RecoverySettings) -> Policy:
    """The policy with routers where the method trains them.

    Raises:
        UsageError: routers cannot rank its image tokens, or their loss is asked for and it has none.
    """
    policy = with_routers(policy) if settings.method == "router" else policy
    if settings.router_loss and not routed_layers(policy):
        reason = "no layer of it ranks image tokens by a router"
        raise UsageError("--router-loss needs routers", [reason], "leave it out, or train with --method router")
    return policy
