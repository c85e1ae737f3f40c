"""Loading the model to be measured, with its tokenizer or processor."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from weakref import WeakValueDictionary

from pydantic import BaseModel, ConfigDict, Field, field_validator

from ..policies.errors import ModelError
from ..policies.quantized.kinds import NONE, Quantization
from ..policies.wording import first_line
from .remote.bucket import fetch, is_bucket

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel

    from .engine.shared import SharedStore
    from .loaded_examples import LoadedExamples

# torch and transformers are imported where they are used, so that reading a space needs neither.


MAX_LISTED = 20  # tensors in one error message
DEVICE = r"^(auto|cpu|mps|(cuda|xpu)(:[0-9]+)?)$"


class ModelSpec(BaseModel):
    """Which model, and how to load it.

    Attributes:
        id: A hub id, the path of a folder, or a folder of a bucket such as `s3://bucket/folder`.
        revision: A branch, tag or commit on the hub; of a bucket, the digest of its files' ETags.
        dtype: The dtype of the weights; `auto` takes the one they were saved in.
        quantization: `int8` quantises the linear layers of the decoder once they are loaded; `none` leaves the weights
            as the checkpoint has them, which may be quantised itself. A search chooses one value of a list; its dense
            model is that of `none`.
        device: A device such as `cpu` or `cuda:1`; `auto` is the first GPU where there is one.
        attn_implementation: An attention implementation such as `sdpa` or `eager`; None leaves it to transformers.
        trust_remote_code: Whether to run code that comes with the model.
        weights: `safetensors`, or `any` to accept pickles too, which can run code when they are loaded.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantization: Annotated[Quantization | list[Quantization], Field(exclude_if=lambda kind: kind == NONE)] = NONE
    device: str = Field(default="auto", pattern=DEVICE)
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] | None = None
    trust_remote_code: bool = False
    weights: Annotated[Literal["safetensors", "any"], Field(exclude_if=lambda kind: kind == "safetensors")] = (
        "safetensors"
    )

    @field_validator("quantization")
    @classmethod
    def _offers_dense(cls, value: Any) -> Any:
        if isinstance(value, list) and (NONE not in value or len({*value}) < len(value)):
            raise ValueError(f"found {value}, expected {NONE} in the list, which is the dense model, and nothing twice")
        return value

    @field_validator("device", mode="before")
    @classmethod
    def _known_device(cls, value: Any) -> Any:
        if not isinstance(value, str) or not re.fullmatch(DEVICE, value):
            raise ValueError(f"found {value!r}, expected auto, cpu, mps, cuda, or one of several such as cuda:1")
        return value

    @property
    def loaded_quantization(self) -> Quantization | None:
        """What the weights are quantised to when they are loaded; None for nothing, and where each policy chooses."""
        return None if isinstance(self.quantization, list) or self.quantization == NONE else self.quantization


@dataclass
class Subject:
    """A loaded model, in evaluation mode and without gradients.

    Attributes:
        model: The model; policies are applied to it and removed again.
        processor: The processor of a multimodal model, else the tokenizer.
        tokenizer: The tokenizer.
        spec: How it was loaded.
        is_multimodal: True where it takes images.
        prompts: Some inputs from examples (CPU tensors by argument name, batch 1), the one of median length first;
            empty without an evaluator that measures on examples.
        examples: The examples that evaluators have loaded for it, by their options; freed with the last evaluator.
        store: Where the processes of the machine keep pixels and image features once; None keeps them in each process.
        commit: The commit on the hub, or the revision of a bucket, that was loaded; None for a folder.
    """

    model: "PreTrainedModel"
    processor: Any
    tokenizer: Any
    spec: ModelSpec
    is_multimodal: bool
    prompts: list[dict[str, "Tensor"]] = field(default_factory=list)
    examples: "WeakValueDictionary[str, LoadedExamples]" = field(default_factory=WeakValueDictionary)
    store: "SharedStore | None" = None
    commit: str | None = None


def load_subject(spec: ModelSpec) -> Subject:
    """Load a model with its tokenizer or processor.

    Raises:
        ModelError: the model does not exist, cannot be downloaded, is of an unknown kind, or does not fit its weights
            or the device.
    """
    from safetensors import SafetensorError

    # transformers raises these where a folder or repository holds other files than it expects.
    unusable = (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError, SafetensorError)
    try:
        with no_progress_bars():
            return _load(spec)
    except unusable as cause:
        raise load_failure(spec, cause) from cause
    except RuntimeError as cause:
        hint = "take a smaller dtype, or a device with more memory"
        raise ModelError(f"model {spec.id} does not load on {spec.device}", [first_line(cause)], hint) from cause


def read_config(spec: ModelSpec) -> "PreTrainedConfig":
    """The configuration of a model, without its weights."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(**_source(spec))


def read_processor(spec: ModelSpec, is_multimodal: bool) -> Any:
    """The processor of a model that takes images, else its tokenizer."""
    from transformers import AutoProcessor, AutoTokenizer

    return (AutoProcessor if is_multimodal else AutoTokenizer).from_pretrained(**_source(spec))


def model_kind(config: "PreTrainedConfig") -> tuple[Any, bool]:
    """The class of transformers that loads a model of a configuration, and whether it takes images."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    is_multimodal = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return (AutoModelForImageTextToText if is_multimodal else AutoModelForCausalLM), is_multimodal


def _source(spec: ModelSpec) -> dict[str, Any]:
    """Where `from_pretrained` finds a model, as its arguments."""
    path = local_folder(spec)
    return {
        "pretrained_model_name_or_path": spec.id if path is None else str(path),
        "trust_remote_code": spec.trust_remote_code,
        "revision": spec.revision or "main",
    }


def local_folder(spec: ModelSpec) -> Path | None:
    """The folder of a model on this machine, where that of a bucket is downloaded to; None for a model of the hub.

    Raises:
        ModelError: the bucket cannot be read, or has another revision.
    """
    if is_bucket(spec.id):
        return fetch(spec.id, spec.revision)
    path = Path(spec.id).expanduser()
    return path if path.is_dir() else None


def _load(spec: ModelSpec) -> Subject:
    from ..policies.families.layers import refuse_infinite
    from ..policies.quantized.weights import quantize

    config = read_config(spec)
    kind, is_multimodal = model_kind(config)
    options: dict[str, Any] = (
        {} if spec.attn_implementation is None else {"attn_implementation": spec.attn_implementation}
    )
    device = _device(spec)
    # The processor is loaded first: a mistake shows within a second, while the weights take minutes.
    processor = read_processor(spec, is_multimodal)
    options |= {"use_safetensors": True} if spec.weights == "safetensors" else {}
    # A checkpoint that is quantised itself stays on the device that it is loaded on.
    is_quantized = getattr(config, "quantization_config", None) is not None
    options |= {"device_map": {"": device}} if is_quantized else {}
    loaded: Any = kind.from_pretrained(
        config=config,
        dtype=spec.dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # So that `refuse_misfits` can list all of them.
        **options,
        **_source(spec),
    )
    model, loading = loaded
    refuse_misfits(spec, loading)
    model.eval().requires_grad_(False)
    if spec.loaded_quantization is not None:
        quantize(model)
    if not is_quantized:
        model.to(device)
    refuse_infinite(model)
    tokenizer = getattr(processor, "tokenizer", processor)
    commit = fetch(spec.id, spec.revision).name if is_bucket(spec.id) else getattr(config, "_commit_hash", None)
    return Subject(model, processor, tokenizer, spec, is_multimodal, commit=commit)


def refuse_misfits(spec: ModelSpec, loading: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that does not fit its configuration: missing tensors would be measured as random weights.

    Args:
        spec: The model.
        loading: transformers' loading report, without tied weights and weights that the family may leave out.

    Raises:
        ModelError: listing the tensors.
    """
    misfits = {
        "missing in the checkpoint": sorted(loading["missing_keys"]),
        "in the checkpoint alone": sorted(loading["unexpected_keys"]),
        "of another shape": [
            f"{key} (found {list(found)}, expected {list(expected)})"
            for key, found, expected in sorted(loading["mismatched_keys"])
        ],
    }
    details = [f"{name}, {words}" for words, names in misfits.items() for name in names]
    if details:
        counts = ", ".join(f"{len(names)} tensors are {words}" for words, names in misfits.items() if names)
        more = [f"and {len(details) - MAX_LISTED} more"] if len(details) > MAX_LISTED else []
        hint = "take a checkpoint that was saved whole, with the config.json that belongs to it"
        raise ModelError(f"model {spec.id} does not fit its weights: {counts}", details[:MAX_LISTED] + more, hint)


def _device(spec: ModelSpec) -> "torch.device":
    """The device for the model, tried before anything large is loaded.

    Raises:
        ModelError: the device is not available.
    """
    import torch

    name = ("cuda" if torch.cuda.is_available() else "cpu") if spec.device == "auto" else spec.device
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as cause:
        hint = "leave out `model.device`, which takes the first GPU where there is one"
        raise ModelError(f"device {name} is not available", [first_line(cause)], hint) from None


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Disable transformers' progress bars, which would be drawn over the search's own."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def load_failure(spec: ModelSpec, cause: BaseException) -> ModelError:
    """The error for a model that did not load, with a hint that fits the cause."""
    path = Path(spec.id).expanduser()
    is_here = is_bucket(spec.id) or path.is_dir()
    looks_like_path = spec.id.startswith((".", "/", "~")) or spec.id.count("/") > 1
    if looks_like_path and not is_here:
        hint = "give a hub id such as llava-hf/llava-1.5-7b-hf, or a folder that save_pretrained wrote"
        return ModelError(f"model folder {spec.id} does not exist", hint=hint)
    if isinstance(cause, ImportError):
        return ModelError(f"model {spec.id} needs a package that is missing", [first_line(cause)], "install it")
    if isinstance(cause, OSError) and not is_here:
        hint = "check the id, the network, HF_HUB_OFFLINE and, for a gated model, `hf auth login`"
        return ModelError(f"model {spec.id} cannot be loaded from the hub", [first_line(cause)], hint)
    hint = "see whether transformers knows the kind of model; a newer release, or trust_remote_code, may help"
    if isinstance(cause, OSError):
        hint = "give a folder that save_pretrained wrote, with config.json, weights and tokenizer"
    return ModelError(f"model {spec.id} cannot be loaded", [first_line(cause)], hint)
