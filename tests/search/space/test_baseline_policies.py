"""The published systems in spaces/baselines: each loads, is what its paper says, and runs as its formulas say."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import transformers as t
from configurations import llava, square
from contract import answer, close
from reference import reference

from families import Batch, Family, run
from skipsearch import Policy, apply_policy
from skipsearch.search.space.load import load_space

SPACES = Path(__file__).parents[3] / "spaces"
FILES = sorted((SPACES / "baselines").glob("*.yaml"))
SYSTEMS = [file for file in FILES if "skipsearch/policy/v1" in file.read_text(encoding="utf-8")]
LAYERS, SIDE = 32, 24
IMAGE_TOKENS = (SIDE // 4) ** 2


def deep() -> t.LlavaConfig:
    """A tiny LLaVA of as many layers as LLaVA-1.5-7B."""
    config = llava(t.LlamaConfig)()
    config.text_config.num_hidden_layers = LAYERS
    config.text_config.initializer_range = 0.1
    config.text_config.num_key_value_heads = config.text_config.num_attention_heads  # as in LLaVA-1.5
    config.vision_config.image_size, config.image_seq_length = SIDE, IMAGE_TOKENS
    return config


FAMILY = Family("llava-deep", deep, (None,) * LAYERS, IMAGE_TOKENS, square(SIDE))


@cache
def model() -> t.PreTrainedModel:
    return FAMILY.build("sdpa")


@pytest.mark.parametrize("file", [file for file in FILES if file not in SYSTEMS], ids=lambda file: file.stem)
def test_a_published_space_is_whole(file):
    space = load_space(str(file)).space
    assert len(space.domains(LAYERS)) == LAYERS and space.may_be_guided


@pytest.mark.parametrize("file", SYSTEMS, ids=lambda file: file.stem)
def test_a_published_system_runs_as_its_formulas_say(file):
    policy, batch = Policy.load(file), Batch.of(FAMILY, [(3, "image", 4)])
    assert policy.model.num_layers == LAYERS and not policy.is_dense
    inputs = batch.padded()
    with apply_policy(model(), policy):
        logits = run(model(), inputs).logits[0]
        answer(model(), inputs)
    close(logits, reference(model(), FAMILY, policy, inputs, len(batch.ids[0])), within=3e-5)


def test_the_page_about_spaces_names_each_system():
    page = (SPACES / "README.md").read_text(encoding="utf-8")
    assert [file.name for file in FILES if f"[`{file.name}`](baselines/{file.name})" not in page] == []
