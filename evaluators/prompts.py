"""The fixed input that costs are measured on, the same for every policy, and generating from it."""

from typing import TYPE_CHECKING, Any

from pydantic import Field

from ..policies.errors import EvaluatorError
from .base import Options

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from .subject import Subject

# torch, numpy and PIL are imported where they are used: reading the options of a space stays light.


class PromptOptions(Options):
    """Options of an evaluator that measures on one fixed prompt.

    Where accuracy is evaluated too, the prompt is the one of median length among its search examples. Else it is made
    up: one random image of the processor's size, for a multimodal model, and random text.

    Attributes:
        prompt_tokens: Text tokens of a made-up prompt.
    """

    prompt_tokens: int = Field(default=64, ge=1, le=1_000_000)


def fixed_input(subject: "Subject", batch_size: int = 1, prompt_tokens: int = 64) -> dict[str, "Tensor"]:
    """The input of a model, on its device: one prompt, `batch_size` times.

    Raises:
        EvaluatorError: no input can be made up for this processor.
    """
    import torch

    prompt = subject.prompts[0] if subject.prompts else made_up_prompt(subject, prompt_tokens)
    device, dtype = subject.model.device, subject.model.dtype
    batch = {key: torch.cat([value] * batch_size) for key, value in prompt.items()}
    return {key: value.to(device, dtype if value.is_floating_point() else None) for key, value in batch.items()}


def made_up_prompt(subject: "Subject", prompt_tokens: int, seed: int = 0) -> dict[str, "Tensor"]:
    """A random prompt, the same at each call: an image, where the model takes any, and `prompt_tokens` of text."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    special = set(subject.tokenizer.all_special_ids)
    words = torch.tensor([index for index in range(len(subject.tokenizer)) if index not in special])
    text = words[torch.randint(len(words), (1, prompt_tokens), generator=generator)]
    if not subject.is_multimodal:
        return {"input_ids": text, "attention_mask": torch.ones_like(text)}
    prompt = image_prompt(subject, seed)
    image_tokens = prompt["input_ids"].shape
    # What has the shape of the tokens goes on over the text: ones in the mask, zeros for kinds of token.
    for key, value in prompt.items():
        if value.shape == image_tokens:
            more = text if key == "input_ids" else torch.full_like(text, int(key == "attention_mask"))
            prompt[key] = torch.cat([value, more.to(value.dtype)], dim=1)
    return prompt


def image_prompt(subject: "Subject", seed: int) -> dict[str, "Tensor"]:
    """One random image as the processor hands it to the model."""
    import numpy as np
    from PIL import Image

    size = dict(getattr(subject.processor.image_processor, "size", None) or {})
    edge = size.get("shortest_edge") or size.get("longest_edge") or 336
    shape = (int(size.get("height") or edge), int(size.get("width") or edge), 3)
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))
    return dict(subject.processor(text=[image_placeholder(subject)], images=[image], return_tensors="pt"))


def image_placeholder(subject: "Subject") -> str:
    """The text that stands for one image in a prompt, before the processor puts its many tokens there.

    Raises:
        EvaluatorError: neither the processor nor the configuration names it.
    """
    config, processor = subject.model.config, subject.processor
    # Gemma 3 marks where an image begins; its image token is what comes out.
    text = getattr(processor, "boi_token", None) or getattr(processor, "image_token", None)
    token_id = getattr(config, "image_token_id", None) or getattr(config, "image_token_index", None)
    if text is None and token_id is None:
        raise EvaluatorError(f"no text stands for an image in {type(processor).__name__}")
    return str(text or subject.tokenizer.decode([token_id]))


def generate(model: "PreTrainedModel", inputs: dict[str, "Tensor"], new_tokens: int, **options: Any) -> Any:
    """Generate exactly so many tokens, greedily and with a cache: one prefill, then a step for each further token."""
    import torch
    from transformers import GenerationConfig

    config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        use_cache=True,
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        eos_token_id=model.generation_config.eos_token_id,
        pad_token_id=0,
        return_dict_in_generate=True,
    )
    run: Any = model.generate
    with torch.no_grad():
        return run(**inputs, generation_config=config, **options)
