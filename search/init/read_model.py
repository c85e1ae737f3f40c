"""What a model's configuration files say: its kind, its processor, and the packages that it needs."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...evaluators.subject import ModelSpec, load_failure, model_kind, no_progress_bars, read_config, read_processor
from ...policies.errors import ModelError
from ...policies.families.model_errors import is_of_model
from ...policies.wording import first_line

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class ModelFiles:
    """What was read of a model.

    Attributes:
        config: Its configuration.
        takes_images: True where it takes images.
        has_chat_template: True where its processor or tokenizer puts conversations into a text.
        unread: Why its processor or tokenizer could not be read; empty where it was.
    """

    config: "PreTrainedConfig"
    takes_images: bool
    has_chat_template: bool = False
    unread: str = ""


def read_model(spec: ModelSpec) -> ModelFiles:
    """Read the configuration of a model, and its processor or tokenizer; no weights.

    Raises:
        ModelError: there is no such model, it is no language model that decodes, or it needs a package.
    """
    with no_progress_bars():
        try:
            config = read_config(spec)
        except ModelError:
            raise
        except Exception as cause:
            if not is_of_model(cause):
                raise
            # Reading runs code of the family, which can fail in any way on a configuration that is wrong.
            raise load_failure(spec, cause) from cause
        refuse_other_kinds(spec, config)
        _, takes_images = model_kind(config)
        refuse_missing_packages(spec, config, takes_images)
        try:
            processor = read_processor(spec, takes_images)
        except ImportError as cause:
            raise load_failure(spec, cause) from cause
        except Exception as cause:
            if not is_of_model(cause):
                raise
            # The processor of a family can fail in any way too; a space can be written without it.
            return ModelFiles(config, takes_images, unread=first_line(cause))
    tokenizer = getattr(processor, "tokenizer", None)
    template = getattr(processor, "chat_template", None) or getattr(tokenizer, "chat_template", None)
    return ModelFiles(config, takes_images, has_chat_template=bool(template))


def refuse_other_kinds(spec: ModelSpec, config: "PreTrainedConfig") -> None:
    """Refuse a model that is no decoder of text.

    Raises:
        ModelError: naming its kind.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    kind = config.model_type
    if config.is_encoder_decoder:
        details = [f"its configuration is of the model type {kind}, with is_encoder_decoder"]
        hint = "choose a model that is a decoder alone, such as Llama or LLaVA"
        raise ModelError(f"model {spec.id} is an encoder with a decoder", details, hint)
    _, takes_images = model_kind(config)
    own_code = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if takes_images or own_code or type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return
    classes = "neither AutoModelForCausalLM nor AutoModelForImageTextToText"
    details = [f"its configuration is of the model type {kind}, which {classes} loads"]
    hint = "choose a model that generates text; a newer release of transformers may know this one"
    raise ModelError(f"model {spec.id} is no language model that transformers loads", details, hint)


def refuse_missing_packages(spec: ModelSpec, config: "PreTrainedConfig", takes_images: bool) -> None:
    """Refuse a model that takes images, and whose processor needs a package that is not installed.

    Raises:
        ModelError: naming the package.
    """
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    if not takes_images or type(config) not in PROCESSOR_MAPPING:
        return
    processor: Any = PROCESSOR_MAPPING[type(config)]
    missing = why_unusable(processor)
    if not missing:
        missing = next(filter(None, (missing_part(config, part) for part in processor.get_attributes())), "")
    if missing:
        hint = f"install it: `pip install {missing.lower()}`, of a build that fits the installed torch"
        what = f"model {spec.id} needs a package that is missing: {missing}"
        raise ModelError(what, [f"the processor of its kind, {config.model_type}, does not work without it"], hint)


def missing_part(config: "PreTrainedConfig", part: str) -> str:
    """The packages of which one would let a part of a processor work; empty where it works, or is made otherwise."""
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
    from transformers.models.auto.video_processing_auto import VIDEO_PROCESSOR_MAPPING

    known: Any = {"image_processor": IMAGE_PROCESSOR_MAPPING, "video_processor": VIDEO_PROCESSOR_MAPPING}.get(part)
    if known is None or type(config) not in known:
        return ""
    found = known[type(config)]
    by_package = found if isinstance(found, dict) else {"": found}
    usable = [kind for kind in by_package.values() if kind is not None and not why_unusable(kind)]
    return "" if usable else " or ".join(filter(None, by_package)) or why_unusable(found)


def why_unusable(kind: Any) -> str:
    """The package that a class of transformers asks for when it is used; empty where it has all it needs."""
    backends = vars(kind).get("_backends", ()) if isinstance(kind, type) else ()
    try:
        kind.from_pretrained  # noqa: B018  A class that stands in for one with a missing package raises at once.
    except ImportError:
        return " or ".join(backends) or kind.__name__
    return ""
