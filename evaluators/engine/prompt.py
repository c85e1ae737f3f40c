"""A prompt before an answer, and several of them as one input of the model."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..accuracy.text_model import TextModel


@dataclass(frozen=True)
class Prompt:
    """The prompt before an answer: token ids, or a text with images.

    Attributes:
        ids: Token ids; for a prompt with images the ids of its text, which give its length.
        text: The text, where there are images.
        images: The images, or None.
    """

    ids: tuple[int, ...]
    text: str = ""
    images: tuple[Any, ...] | None = None

    @property
    def key(self) -> Hashable:
        """Equal for equal prompts. Images have no hash; their `id` serves, because a task returns the same objects."""
        return self.ids, self.text, self.images and tuple(map(id, self.images))


def encode(prompts: Sequence[Prompt], model: "TextModel") -> dict[str, Tensor]:
    """The model's input for some prompts, all with images or all without, padded on the left."""
    if prompts[0].images is not None:
        texts, images = [prompt.text for prompt in prompts], [list(prompt.images or ()) for prompt in prompts]
        return dict(model.tok_batch_multimodal_encode(texts, images))
    longest = max(len(prompt.ids) for prompt in prompts)
    padding = [longest - len(prompt.ids) for prompt in prompts]
    ids = [[model.tokenizer.pad_token_id] * n + list(prompt.ids) for n, prompt in zip(padding, prompts, strict=True)]
    mask = [[0] * n + [1] * (longest - n) for n in padding]
    return {
        "input_ids": torch.tensor(ids, device=model.device),
        "attention_mask": torch.tensor(mask, device=model.device),
    }
