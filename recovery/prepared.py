"""The policy that is trained: what can be, and adapters in place of its skipped attentions."""

from ..policies.errors import UsageError
from ..policies.policy import Policy
from ..policies.trained.adapters import adapted_layers
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
