"""The fixed input of cost evaluators, the same for every policy, and generation from it."""

from typing import TYPE_CHECKING, Any

from pydantic import Field

from ..policies.errors import EvaluatorError
from .base import Options

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from .subject import Subject

# torch, numpy and PIL are imported where they are used, so that reading the options of a space needs none of them.

# In pixels. A longer edge than the first is a number of pixels instead (see `picture_size`); an image with the second
# has as many tokens in a Qwen-VL as in LLaVA-1.5.
LONGEST_EDGE, USUAL_EDGE = 8192, 672


class PromptOptions(Options):
    """Options of an evaluator that measures on one fixed prompt.

    Where accuracy is evaluated too, it is the prompt of median length among its search examples. Else the prompt is
    synthetic: random text, and for a multimodal model one random image of a usual size for the processor. The `detail`
    of a measurement says which one was used.

    Attributes:
        prompt_tokens: Number of text tokens of a synthetic prompt.
    """

    prompt_tokens: int = Field(default=64, ge=1, le=1_000_000)


def fixed_input(
    subject: "Subject", batch_size: int = 1, prompt_tokens: int = 64, number: int = 0
) -> dict[str, "Tensor"]:
    """The fixed input of a model, on its device: one prompt, `batch_size` times.

    Args:
        subject: The model.
        batch_size: How often the prompt is repeated.
        prompt_tokens: Number of text tokens of a synthetic prompt.
        number: Which of the subject's prompts; the seed of a synthetic one.

    Raises:
        EvaluatorError: no synthetic prompt can be made for this processor.
    """
    import torch

    prompt = subject.prompts[number] if subject.prompts else synthetic_prompt(subject, prompt_tokens, number)
    device, dtype = subject.model.device, subject.model.dtype
    batch = {key: torch.cat([value] * batch_size) for key, value in prompt.items()}
    return {key: value.to(device, dtype if value.is_floating_point() else None) for key, value in batch.items()}


def synthetic_prompt(subject: "Subject", prompt_tokens: int, seed: int = 0) -> dict[str, "Tensor"]:
    """A seeded random prompt: an image, where the model takes images, and `prompt_tokens` tokens of text."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    special = set(subject.tokenizer.all_special_ids)
    words = torch.tensor([index for index in range(len(subject.tokenizer)) if index not in special])
    text = words[torch.randint(len(words), (1, prompt_tokens), generator=generator)]
    if not subject.is_multimodal:
        return {"input_ids": text, "attention_mask": torch.ones_like(text)}
    prompt = image_prompt(subject, seed)
    image_tokens = prompt["input_ids"].shape
    # Every tensor with an entry for each token is extended over the text: the mask with ones, token types with zeros.
    for key, value in prompt.items():
        if value.shape == image_tokens:
            more = text if key == "input_ids" else torch.full_like(text, int(key == "attention_mask"))
            prompt[key] = torch.cat([value, more.to(value.dtype)], dim=1)
    return prompt


def describe_input(subject: "Subject", inputs: "dict[str, Tensor]") -> str:
    """A description of the fixed input for the report."""
    tokens = inputs["input_ids"].shape[1]
    if subject.prompts:
        return f"an example's prompt of {tokens} tokens, the median length"
    if not subject.is_multimodal:
        return f"a synthetic prompt of {tokens} tokens"
    height, width = picture_size(subject.processor.image_processor)
    return f"a synthetic prompt of {tokens} tokens with one random image of {width} x {height} pixels"


def image_prompt(subject: "Subject", seed: int) -> dict[str, "Tensor"]:
    """The processor's output for one random image."""
    import numpy as np
    from PIL import Image

    shape = (*picture_size(subject.processor.image_processor), 3)
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))
    return dict(subject.processor(text=[image_placeholder(subject)], images=[image], return_tensors="pt"))


def picture_size(image_processor: Any) -> tuple[int, int]:
    """Height and width in pixels of a usual image for a processor.

    Processors like Qwen-VL's take any size between a smallest and a largest number of pixels, which they store under
    the names of the edges.
    """
    size = dict(getattr(image_processor, "size", None) or {})
    if size.get("height") and size.get("width"):
        return int(size["height"]), int(size["width"])
    least, most = size.get("shortest_edge"), size.get("longest_edge")
    known = getattr(getattr(image_processor, "valid_kwargs", None), "__annotations__", {})
    if least and most and ("min_pixels" in known or most > LONGEST_EDGE):
        edge = round(min(max(USUAL_EDGE**2, least), most) ** 0.5)
    else:
        edge = int(least or most or 336)
    return edge, edge


def image_placeholder(subject: "Subject") -> str:
    """The placeholder text of one image in a prompt, which the processor replaces with image tokens.

    Raises:
        EvaluatorError: neither the processor nor the configuration names it.
    """
    config, processor = subject.model.config, subject.processor
    # Gemma 3's placeholder is a begin-of-image token; its image token is part of what replaces it.
    text = getattr(processor, "boi_token", None) or getattr(processor, "image_token", None)
    token_id = getattr(config, "image_token_id", None) or getattr(config, "image_token_index", None)
    if text is None and token_id is None:
        raise EvaluatorError(f"no text stands for an image in {type(processor).__name__}")
    return str(text or subject.tokenizer.decode([token_id]))


def generation_options(**wanted: Any) -> dict[str, Any]:
    """All options of `generate`: the wanted ones, greedy decoding with a cache, and None for all others.

    An option that is missing would come from the model's generation_config.json, such as stop strings or another way of
    decoding. An option that is None counts as given.
    """
    from transformers import GenerationConfig

    names = {name for name in vars(GenerationConfig()) if name[0] != "_"} - {"transformers_version"}
    plain = {"do_sample": False, "num_beams": 1, "num_return_sequences": 1, "use_cache": True}
    return {**dict.fromkeys(names), **plain, **wanted}


def generate(model: "PreTrainedModel", inputs: dict[str, "Tensor"], new_tokens: int, **options: Any) -> Any:
    """Generate exactly `new_tokens` tokens, greedily and with a cache: a prefill, and a step for each further token.

    Further `options` of `generate` go before these.
    """
    import torch

    wanted = {
        "max_new_tokens": new_tokens,
        "min_new_tokens": new_tokens,
        "eos_token_id": model.generation_config.eos_token_id,
        "pad_token_id": 0,
        "return_dict_in_generate": True,
    }
    run: Any = model.generate
    with torch.no_grad():
        return run(**inputs, **generation_options(**{**wanted, **options}))
