"""Loading a base model with a policy applied, from a folder or a repository that holds the policy."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .card import is_hub_id
from .errors import HubError, ModelError, PolicyMismatch
from .policy import Policy
from .quantized.kinds import NONE

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

MAX_LISTED = 5


def from_pretrained(
    place: str | Path, revision: str | None = None, *, base: str | Path | None = None, **options: Any
) -> "PreTrainedModel":
    """Load the base model of a policy, and apply the policy to it.

    Args:
        place: A folder that holds the policy, or the id of a repository.
        revision: A branch, tag or commit of that repository. The base model has the revision that the policy names.
        base: The base model, where it is not to be loaded under the id in the policy: a folder with a copy of it.
        options: Options of transformers' `from_pretrained`, such as `dtype` and `device_map`.

    Returns:
        The model in evaluation mode; `applied_policy(model)` is the handle that removes the policy.

    Raises:
        HubError: there is no policy, or it names no base model.
        PolicyError: the policy has mistakes.
        PolicyMismatch: the base model is another one.
        ModelError: the base model does not load, or cannot be quantised as the policy says.
    """
    from .apply import apply_policy
    from .quantized.weights import quantization_of, quantize

    policy = Policy.from_pretrained(place, revision)
    name, at = base_of(policy, base)
    trusted = {"trust_remote_code": options.get("trust_remote_code", False)}
    model = load_base(policy, name, at, trusted, options)
    if policy.model.quantization != NONE and quantization_of(model) == NONE:
        # For good, so that the weights are in memory once.
        quantize(model)
    apply_policy(model, policy)
    return model


def base_of(policy: Policy, base: str | Path | None) -> tuple[str, str | None]:
    """The base model to load, and its revision.

    Raises:
        HubError: neither the policy nor the caller names one.
        PolicyMismatch: the caller names another model of the hub than the policy.
    """
    own = policy.model.id
    if base is None:
        if own is None:
            hint = "name it, as in `from_pretrained(repository, base=MODEL)`"
            raise HubError("the policy names no base model", hint=hint)
        return own, policy.model.revision
    if is_hub_id(str(base)) and is_hub_id(own) and str(base) != own:
        hint = "leave `base` out; `apply_policy(model, policy)` applies a policy to any model that has as many layers"
        raise PolicyMismatch(f"the policy was made for {own}", [f"found base={str(base)!r}"], hint)
    return str(base), policy.model.revision if str(base) == own else None


def load_base(
    policy: Policy, name: str, revision: str | None, trusted: dict[str, bool], options: dict[str, Any]
) -> "PreTrainedModel":
    """Load a base model; a model of another depth is refused before its weights are read.

    Raises:
        PolicyMismatch: the policy was made for another number of layers.
        ModelError: the model does not load, or its checkpoint does not fit its configuration.
    """
    import transformers

    where = {} if revision is None else {"revision": revision}
    at = "" if revision is None else f" at revision {revision}"
    try:
        config = transformers.AutoConfig.from_pretrained(name, **trusted, **where)
        policy.check_fits(config.get_text_config().num_hidden_layers, name)
        kind = getattr(transformers, auto_class_of(config))
        model, report = kind.from_pretrained(name, **{**options, **where, "output_loading_info": True})
    except (OSError, ValueError, ImportError) as cause:
        reason = f"{type(cause).__name__}: {str(cause).strip().partition(chr(10))[0]}"
        hint = "check its id and revision, the network and `hf auth login`; `base=FOLDER` takes a copy on this machine"
        raise ModelError(f"the base model {name}{at} cannot be loaded", [reason], hint) from cause
    if missing := sorted(report["missing_keys"]):
        hint = "take a checkpoint that was saved whole"
        raise ModelError(f"the checkpoint of {name}{at} lacks {len(missing)} tensors", missing[:MAX_LISTED], hint)
    loaded: PreTrainedModel = model.eval()
    return loaded


def auto_class_of(config: "PreTrainedConfig") -> str:
    """The name of the auto class that loads models of a configuration."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    is_multimodal = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return "AutoModelForImageTextToText" if is_multimodal else "AutoModelForCausalLM"


def pipeline_tag(config: "PreTrainedConfig") -> str:
    """The task of models of a configuration, as the hub names it."""
    return "text-generation" if auto_class_of(config) == "AutoModelForCausalLM" else "image-text-to-text"
