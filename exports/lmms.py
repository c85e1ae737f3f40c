"""A model of lmms-eval under a policy: `lmms_eval --model skipsearch --model_args model=llava_hf,policy=FILE,...`.

lmms-eval (0.7 and later) reads the entry point `lmms_eval.models`. Its own model class, named by `model=`, loads the
weights and makes the prompts, with all arguments but these two; then the policy is applied to what it loaded.
"""

from typing import Any

from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from lmms_eval.utils import simple_parse_args_string

from ..policies.apply import apply_policy
from ..policies.errors import EvaluatorError
from ..policies.policy import Policy

NAME = "skipsearch"
MANIFEST = ModelManifest(NAME, f"{__name__}.PolicyModel", f"{__name__}.PolicyChatModel")


class PolicyModel(lmms):
    """Makes one of lmms-eval's models and applies a policy to it; with `--force_simple` one without chat templates."""

    is_simple = True

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> Any:
        """The model that lmms-eval runs.

        Args:
            arg_string: `model` names one of lmms-eval's own models that runs transformers in this process, `policy` is
                a policy file; that model takes all others.
            additional_config: What lmms-eval adds, such as the batch size.

        Raises:
            EvaluatorError: an argument is missing, or that model has no transformers model.
            PolicyError: the file has mistakes, or the policy does not fit.
        """
        from lmms_eval.models import get_model

        arguments = simple_parse_args_string(arg_string)
        if missing := [name for name in ("model", "policy") if name not in arguments]:
            hint = "write --model_args model=llava_hf,pretrained=...,policy=policy.yaml"
            raise EvaluatorError(f"--model {NAME} needs {' and '.join(missing)}", [f"found {arg_string!r}"], hint)
        name, policy = arguments.pop("model"), Policy.load(arguments.pop("policy"))
        more = {key: value for key, value in (additional_config or {}).items() if value is not None}
        made = get_model(name, force_simple=cls.is_simple)(**arguments, **more)
        if not hasattr(made, "model"):
            hint = "name a model of lmms-eval that runs transformers in this process, such as llava_hf"
            raise EvaluatorError(f"{name} of lmms-eval has no model here", [f"found a {type(made).__name__}"], hint)
        apply_policy(made.model, policy)
        if depends_on_prompt_ends(policy):
            made.loglikelihood = refuse_loglikelihood
        return made


class PolicyChatModel(PolicyModel):
    """The same of its models that take chats, which lmms-eval prefers."""

    is_simple = False


def depends_on_prompt_ends(policy: Policy) -> bool:
    """True where an answer counts as another thing than its prompt; lmms-eval does not say where it begins."""
    choices = policy.canonical().layers.values()
    return any(choice.token_ratio is not None or choice.phase != "both" for choice in choices)


def refuse_loglikelihood(requests: Any) -> Any:
    """Refuse tasks that score given answers.

    Raises:
        EvaluatorError: always.
    """
    raise EvaluatorError(
        "lmms-eval scores given answers without saying where the prompt ends, which this policy needs to know",
        hint="run tasks that generate, or measure the policy with `skipsearch eval`",
    )
