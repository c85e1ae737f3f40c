"""Every way of running a model, under a policy of each kind: as the slow formulas say, or an error that names the way.

The ways are listed from `generate`, from GenerationConfig and from the signature of `forward`, so an option that a
later release of transformers brings fails `test_every_option_is_decided` until it is.
"""

from __future__ import annotations

import inspect
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
import transformers as t
from contract import close
from outcomes import BEGIN, DENSE, END, KINDS, NAMES, PAGE, Outcome, committed, policy_for, rendered
from reference import reference
from tiers import sample
from transformers.generation import GenerationMixin
from transformers.generation.configuration_utils import ALL_CACHE_IMPLEMENTATIONS
from transformers.utils import TransformersKwargs
from ways import Case, Found
from ways_table import DECIDED, WAYS

from families import FAMILIES, IMAGE, Batch, batch_of
from skipsearch import Policy, apply_policy
from skipsearch.policies.errors import SkipsearchError

found_by: dict[tuple[str, str, str], Outcome] = {}


@cache
def built(name: str) -> t.PreTrainedModel:
    """A model of this file's own: some ways leave something on it."""
    return FAMILIES[name].build("sdpa")


@cache
def eager(name: str) -> t.PreTrainedModel:
    return FAMILIES[name].build("eager")


@cache
def expected(name: str, kind: str, attention: str, row: Any, end: int, answer: tuple[int, ...] | None) -> torch.Tensor:
    """The logits of the formulas; rows with equal tokens and images are computed once."""
    model = (eager if attention == "eager" else built)(name)
    ids, pixels = row
    inputs = {key: torch.tensor(value) for key, value in ids}
    policy = Policy() if kind == "dense" else policy_for(name, kind)
    return reference(model, FAMILIES[name], policy, {**inputs, **dict(PIXELS[pixels])}, end, answer)


PIXELS: dict[int, Any] = {}


def hold(name: str, kind: str, attention: str, one: Found) -> None:
    """Compare what a way gave for one row with the formulas."""
    batch = one.batch
    ids = [list(one.ids) if row == one.row else list(other) for row, other in enumerate(batch.ids)]
    images = [count if IMAGE in row else 0 for row, count in zip(ids, batch.images, strict=True)]
    inputs = Batch(batch.family, ids, images, batch.pixels, batch.ends).alone(one.row)
    pixels = {key: inputs.pop(key) for key in list(inputs) if key in batch.pixels}
    mark = hash(tuple((key, value.sum().item(), value.shape) for key, value in sorted(pixels.items())))
    PIXELS[mark] = pixels
    plain = tuple((key, tuple(map(tuple, value.tolist()))) for key, value in inputs.items())
    wanted = expected(name, kind, attention, (plain, mark), one.end, one.answer)
    if one.chances:
        wanted = wanted[one.first : one.first + len(one.logits)].log_softmax(-1)
        close(torch.where(one.logits.isfinite(), one.logits, wanted), wanted, 2e-4)
    elif one.logits is not None:
        close(one.logits, wanted[one.first : one.first + len(one.logits)], 2e-5)
    else:
        check_answer(one, wanted)


def check_answer(one: Found, wanted: torch.Tensor) -> None:
    """Compare an answer, or its score, with the logits of the formulas."""
    chances = wanted[one.end - 1 : -1].log_softmax(-1)
    chosen = chances.gather(1, torch.tensor(one.ids[one.end :])[:, None])[:, 0]
    if one.score is not None:
        close(torch.tensor(one.score), chosen.sum(), 2e-5)
    else:
        assert (chosen > chances.max(-1).values - 1e-4).all()


def outcome(way: str, name: str, kind: str) -> Outcome:
    """Run one way under one policy; anything but right or refused is an error."""
    attention = "eager" if "eager" in way else "sdpa"
    # What transformers collects the outputs of layers with stays on a model, and cannot be pickled.
    make = built.__wrapped__ if WAYS[way].fresh else eager if attention == "eager" else built
    model = make(name)
    case = Case(name, model, batch_of(name))
    before = model.generation_config.to_dict()
    try:
        if kind == "dense":
            found = WAYS[way].run(case)
        else:
            with apply_policy(model, policy_for(name, kind)) as handle:
                case.handle = handle
                found = WAYS[way].run(case)
                case.handle = None
    except SkipsearchError as error:
        return Outcome("refused", str(error))
    finally:
        model.generation_config = type(model.generation_config).from_dict(before)
    assert found
    for one in found:
        hold(name, kind, attention, one)
    return Outcome("right")


@pytest.mark.parametrize(("way", "name"), sample(product(WAYS, NAMES), 2))
def test_a_way_of_calling_is_right_or_refused(way, name):
    if (way, name) in DENSE:
        if DENSE[way, name].tried:
            with pytest.raises(DENSE[way, name].error):
                outcome(way, name, "dense")
        found_by[way, name, "dense"] = Outcome("dense", DENSE[way, name].reason)
        return
    assert outcome(way, name, "dense").kind == "right", "the dense model itself"
    for kind in KINDS:
        if policy_for(name, kind) is not None:
            found_by[way, name, kind] = outcome(way, name, kind)


def options() -> dict[str, set[str]]:
    """All that a caller can say, by where it is said."""
    forwards = (t.LlamaForCausalLM, t.LlavaForConditionalGeneration, t.Qwen2_5_VLForConditionalGeneration)
    said = {f"forward: {name}" for model in forwards for name in inspect.signature(model.forward).parameters}
    said |= {f"forward: {name}" for name in TransformersKwargs.__optional_keys__}
    fields = {name for name in vars(t.GenerationConfig()) if not name.startswith("_")}
    return {
        "forward": said - {"forward: self"},
        "GenerationConfig": {f"config: {name}" for name in fields},
        "generate": {f"generate: {name}" for name in inspect.signature(GenerationMixin.generate).parameters}
        - {"generate: self", "generate: kwargs"},
        "caches": {f"cache: {name}" for name in (*ALL_CACHE_IMPLEMENTATIONS, "paged")},
    }


def test_every_option_is_decided():
    every = set().union(*options().values())
    taken = set().union(*(way.covers for way in WAYS.values()))
    assert every - taken - set(DECIDED) == set(), "options that no way uses: add a way, or say in DECIDED why none can"
    assert (taken | set(DECIDED)) - every == set(), "options that transformers does not have"
    assert taken & set(DECIDED) == set()


def test_the_page_says_what_came_of_every_way(pytestconfig):
    if {(way, name) for way, name, _ in found_by} != {(way, name) for way in WAYS for name in NAMES}:
        pytest.skip("not all ways were run")
    made, path = rendered(WAYS, found_by), pytestconfig.getoption("--ways")
    if path is not None:
        before, rest = path.read_text().split(BEGIN)
        path.write_text(before + BEGIN + made + END + rest.split(END)[1])
    assert committed(PAGE.read_text()) == made, "run pytest on this file with --ways policies/README.md"
