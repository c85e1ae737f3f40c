"""Many questions about one scene in one sequence: the image is processed once, no question sees another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from .architecture import IMAGE_TOKENS, PROMPT
from .data import Drill, Question

SEGMENT = 12  # tokens of the longest question with its answer and <eos>, as the tokenizer counts them

NOTHING = -100  # what cross-entropy leaves out


@dataclass(frozen=True)
class Segments:
    """The questions of a batch of scenes: `ids` and `targets` are (scenes, questions, SEGMENT).

    `targets[..., i]` is the token that follows `ids[..., i]`, or NOTHING where nothing is to be learned.
    """

    ids: torch.Tensor
    targets: torch.Tensor


def pack(tokenizer: PreTrainedTokenizerFast, asked: list[list[Question | Drill]]) -> Segments:
    """Turn what is asked about each scene into token ids and targets."""
    flat = [item for scene in asked for item in scene]
    ids = np.full((len(flat), SEGMENT), tokenizer.pad_token_id)
    targets = np.full((len(flat), SEGMENT), NOTHING)
    vocabulary = tokenizer.get_vocab()
    starts = tokenizer([_before_answer(item) for item in flat])["input_ids"]
    for row, (item, start) in enumerate(zip(flat, starts, strict=True)):
        ids[row, : len(start)] = start
        if isinstance(item, Drill):
            targets[row, : len(start)] = [NOTHING if word is None else vocabulary[word] for word in item.targets]
            continue
        answer = [vocabulary[word] for word in (*item.answer.split(), "<eos>")]
        end = len(start) + len(answer)
        ids[row, len(start) : end] = answer
        targets[row, len(start) - 1 : end - 1] = answer
    shape = (len(asked), -1, SEGMENT)
    return Segments(torch.tensor(ids).view(shape), torch.tensor(targets).view(shape))


def _before_answer(item: Question | Drill) -> str:
    if isinstance(item, Drill):
        return " ".join(item.words)
    return PROMPT.split("<image>")[1].format(question=item.text)


def segment_logits(
    model: LlavaForConditionalGeneration, prefix_ids: torch.Tensor, features: torch.Tensor, segments: Segments
) -> torch.Tensor:
    """Run the decoder over image and questions; returns logits of the shape of `segments.ids` + (vocabulary,).

    Args:
        model: The model.
        prefix_ids: The tokens before the image.
        features: What the vision tower says of the scenes, (scenes, IMAGE_TOKENS, width), before the projector.
        segments: The questions.
    """
    scenes, count, length = segments.ids.shape
    embed = model.get_input_embeddings()
    before = embed(prefix_ids).expand(scenes, -1, -1)
    image = model.model.multi_modal_projector(features)
    hidden = torch.cat([before, image, embed(segments.ids.flatten(1))], 1)
    prefix = before.shape[1] + image.shape[1]
    positions = torch.cat([torch.arange(prefix), (prefix + torch.arange(length)).repeat(count)])
    hidden = model.model.language_model(
        inputs_embeds=hidden,
        attention_mask=segment_mask(prefix, count, length).expand(scenes, 1, -1, -1),
        position_ids=positions[None].expand(scenes, -1),
        use_cache=False,
    ).last_hidden_state
    return model.lm_head(hidden[:, prefix:]).view(scenes, count, length, -1)


def segment_mask(prefix: int, count: int, length: int) -> torch.Tensor:
    """The attention mask, (1, 1, tokens, tokens): a token sees the prefix and earlier tokens of its question."""
    owner = torch.cat([torch.full((prefix,), -1), torch.arange(count).repeat_interleave(length)])
    visible = (owner[None, :] == owner[:, None]) | (owner[None, :] == -1)
    return (visible & torch.ones_like(visible).tril())[None, None]


def segment_loss(logits: torch.Tensor, segments: Segments) -> torch.Tensor:
    """Cross-entropy over the answers, <eos> included."""
    return F.cross_entropy(logits.flatten(0, 2), segments.targets.flatten(), ignore_index=NOTHING)


def answered(logits: torch.Tensor, segments: Segments) -> torch.Tensor:
    """Tell which questions greedy decoding would answer right, (scenes, questions)."""
    right = (logits.argmax(-1) == segments.targets) | (segments.targets == NOTHING)
    return right.all(-1)


def image_slice(prefix_ids: torch.Tensor) -> slice:
    """Return the places of the image tokens in a packed sequence."""
    return slice(len(prefix_ids), len(prefix_ids) + IMAGE_TOKENS)
