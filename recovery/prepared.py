"""The policy that is trained: what can be, and adapters in place of its skipped attentions."""

from ..policies.choice import has_width
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
    refuse_widths(policy, settings)
    if settings.method == "adapter":
        policy = with_adapters(policy)
    if settings.freeze and not adapted_layers(policy):
        hint = "train with --method adapter"
        raise UsageError("there is nothing to freeze", ["the policy has no `attention: adapter`"], hint)
    if settings.skip is not None:
        refuse_too_few(policy, settings.skip)
    return policy


def refuse_widths(policy: Policy, settings: RecoverySettings) -> None:
    """Refuse to train weights by which the policy ranks channels or heads, or under a ranking in a file of its own.

    Raises:
        UsageError: the policy has them.
    """
    reason = "training changes which channels and heads are the best"
    if settings.method == "adapter":
        reason = "the ranking `energy` has a file, and trained weights have another folder"
    if has_width(policy.canonical().layers) and (settings.method != "adapter" or policy.width_selection.file):
        what = "a policy with `ffn_ratio` or `head_ratio` cannot be recovered"
        raise UsageError(what, [reason], "leave `ffn_ratio` and `head_ratio` out of it, or rank by `weights`")
