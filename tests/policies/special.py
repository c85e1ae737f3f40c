"""Ways that need more than an option: guidance, compiled decoding, packed rows, and inputs that are made for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from ways import ANSWER, Case, Found, Way, answers, tokenizer

from families import Batch, forget


def guided(**options: Any) -> Way:
    """Guidance runs a second prompt beside the first, with a cache of its own."""
    scale, negative = 1.5, [[11, 12], [13, 14], [15, 16]]

    def way(case: Case) -> list[Found]:
        ids = torch.tensor(negative)
        told = {"max_new_tokens": ANSWER, "do_sample": False, "return_dict_in_generate": True}
        told |= {"negative_prompt_ids": ids, "negative_prompt_attention_mask": torch.ones_like(ids)}
        forget(case.model)
        out = case.model.generate(
            **case.inputs, **told, guidance_scale=scale, output_logits=True, output_scores=True, **options
        )
        found = answers(case, out.sequences[:, -ANSWER:], out.logits)
        logits, scores = torch.stack(out.logits, 1).log_softmax(-1), torch.stack(out.scores, 1)
        unguided = (scores - scale * logits) / (1 - scale)
        for row, answer in enumerate(out.sequences[:, -ANSWER:].tolist()):
            prompt = negative[row]
            found.append(case.found(row, (*prompt, *answer), len(prompt), len(prompt) - 1, unguided[row], chances=True))
        return found

    return way


def healed(case: Case) -> list[Found]:
    """The end of the prompt is written anew before the answer."""
    case = case.alone
    told = {"max_new_tokens": ANSWER, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    out = case.model.generate(**case.inputs, **told, token_healing=True, tokenizer=tokenizer())
    ids = out.sequences[0].tolist()
    end = len(ids) - ANSWER
    return [case.found(0, tuple(ids), end, end - 1, torch.stack(out.logits, 1)[0])]


def packed(lengths: bool) -> Way:
    """Two prompts in one row, told apart by positions that begin anew, and where `lengths`, by their lengths."""

    def way(case: Case) -> list[Found]:
        case = replace(case, batch=Batch.of(case.batch.family, [(5,), (4,)]))
        batch = case.batch
        ids = torch.tensor([batch.ids[0] + batch.ids[1]])
        places = torch.tensor([[*range(5), *range(4)]])
        more: dict[str, Any] = {}
        if lengths:
            ends = torch.tensor([0, 5, 9], dtype=torch.int32)
            more = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": 5, "max_length_k": 5}
        forget(case.model)
        with torch.no_grad():
            logits = case.model(input_ids=ids, position_ids=places, use_cache=False, **more).logits[0]
        parts = zip(batch.ids, logits.split([5, 4]), strict=True)
        return [case.found(row, tuple(part), len(part), 0, own) for row, (part, own) in enumerate(parts)]

    return way


def positions(case: Case) -> Tensor:
    """The places of a padded batch; Qwen's are in time, height and width."""
    inputs = case.inputs
    if hasattr(case.model.model, "get_rope_index"):
        kinds = ("input_ids", "attention_mask", "mm_token_type_ids", "image_grid_thw")
        return case.model.model.get_rope_index(**{name: inputs[name] for name in kinds})[0]
    return (inputs["attention_mask"].cumsum(1) - 1).clamp_min(0)


def whole_mask(case: Case) -> Tensor:
    """A causal mask of four dimensions that sees no padding."""
    real = case.inputs["attention_mask"].bool()
    places = torch.arange(real.shape[1])
    seen = (places[None, :] <= places[:, None])[None] & real[:, None]
    # Padding sees itself, or its attention would be of nothing.
    seen = seen | torch.eye(len(places), dtype=torch.bool)
    return torch.zeros(seen.shape)[:, None].masked_fill(~seen[:, None], torch.finfo(torch.float32).min)


def encoded(case: Case) -> list[Found]:
    """A forward with images that went through the vision tower before."""
    inputs = case.inputs
    pixels = {name: inputs.pop(name) for name in ("pixel_values",) if name in inputs}
    more = {name: inputs[name] for name in ("image_grid_thw",) if name in inputs}
    forget(case.model)
    with torch.no_grad():
        features = {"image": case.model.get_image_features(**pixels, **more, return_dict=True)} if pixels else None
        logits = case.model(**inputs, **({"mm_encoder_outputs": features} if pixels else {})).logits
    rows = enumerate(case.batch.ids)
    return [case.found(row, tuple(ids), len(ids), 0, case.batch.real(logits, row, "left")) for row, ids in rows]


def single(way: Way) -> Way:
    """A way on one row, which needs no padding."""
    return lambda case: way(case.alone)
