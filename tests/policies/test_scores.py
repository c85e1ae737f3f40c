"""The contract of image-token scores, run over all scores in the table."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch

from skipsearch import Policy
from skipsearch.policies.errors import PolicyError
from skipsearch.policies.policy import TokenSelection
from skipsearch.policies.runtime.tokens import ForwardTokens
from skipsearch.policies.schemas import policy_schema
from skipsearch.policies.scores.score import ScoreInputs
from skipsearch.policies.scores.table import SCORES, ScoreName

BATCH, TOKENS, WIDTH = 4, 24, 8
RATIOS = (0.0, 0.1, 0.29, 0.5, 0.9)
# Rows of different padding, with one image, two images, images at the ends, and none.
IMAGES = ((slice(8, 20),), (slice(5, 9), slice(12, 21)), (slice(2, 12), slice(20, 24)), ())
PADDING = (6, 3, 0, 9)

every_score = pytest.mark.parametrize("name", SCORES)


def forward(recorded: tuple[bool, ...] = (True,) * BATCH, attention: torch.Tensor | None = None) -> ForwardTokens:
    """The tokens of one forward, padded on the left, with attention recorded in some rows."""
    image = torch.zeros(BATCH, TOKENS, dtype=torch.bool)
    mask = torch.ones(BATCH, TOKENS, dtype=torch.long)
    for row, (slices, padding) in enumerate(zip(IMAGES, PADDING, strict=True)):
        for part in slices:
            image[row, part] = True
        mask[row, :padding] = 0
    # A processor may leave the image token's id in the padding.
    image[0, 0] = True
    tokens = ForwardTokens.read(image, mask, None)
    generator = torch.Generator().manual_seed(1)
    tokens.attention = torch.rand(BATCH, TOKENS, generator=generator) if attention is None else attention
    tokens.has_attention = list(recorded)
    return tokens


def hidden_states(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    # Padding has the largest norms, so a score that looked at it would choose it.
    states = torch.randn(BATCH, TOKENS, WIDTH, generator=generator)
    for row, padding in enumerate(PADDING):
        states[row, :padding] *= 100
    return states.to(dtype)


def inputs_of(tokens: ForwardTokens, hidden: torch.Tensor, keep: list[int]) -> ScoreInputs:
    return ScoreInputs(hidden, tokens.remaining.mask, keep, tokens.attention, tokens.has_attention)


@every_score
def test_the_table_names_each_score_and_the_type_names_the_table(name):
    score = SCORES[name]
    assert score.name == name and score.meaning and isinstance(score.reads_attention, bool)
    assert tuple(SCORES) == get_args(ScoreName)


@every_score
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("recorded", [(True,) * BATCH, (False,) * BATCH, (True, False, True, False)])
def test_scores_are_finite_float32_of_one_entry_a_token(name, dtype, recorded):
    tokens = forward(recorded)
    found = SCORES[name].scores(inputs_of(tokens, hidden_states(dtype), [3, 5, 7, 0]))
    assert found.shape == (BATCH, TOKENS) and found.dtype == torch.float32
    assert found[tokens.images.mask].isfinite().all()


@every_score
def test_equal_inputs_give_equal_scores_and_leave_the_inputs_alone(name):
    tokens, hidden = forward(), hidden_states()
    before = hidden.clone(), tokens.attention.clone(), tokens.images.mask.clone()
    first, second = (SCORES[name].scores(inputs_of(tokens, hidden, [3, 5, 7, 0])).clone() for _ in range(2))
    assert torch.equal(first, second)
    assert all(map(torch.equal, before, (hidden, tokens.attention, tokens.images.mask)))


@every_score
@pytest.mark.parametrize("ratio", RATIOS)
def test_each_row_keeps_the_truncated_share_of_its_image_tokens(name, ratio):
    tokens = forward()
    chosen = tokens.choose_images(hidden_states(), ratio, name)
    share = [int(ratio * count + 1e-9) for count in (12, 13, 14, 0)]
    assert chosen.counts == chosen.mask.sum(dim=1).tolist() == share


@every_score
@pytest.mark.parametrize("ratio", RATIOS)
def test_padding_and_text_are_never_chosen(name, ratio):
    tokens = forward()
    chosen = tokens.choose_images(hidden_states(), ratio, name).mask
    assert not (chosen & ~tokens.images.mask).any()
    assert not tokens.images.mask[0, 0]


@every_score
@pytest.mark.parametrize("recorded", [(True,) * BATCH, (False,) * BATCH, (True, False, True, False)])
def test_the_highest_scores_are_kept_and_of_equal_ones_the_first(name, recorded):
    # Few different norms and weights, so that many tokens tie.
    hidden = torch.ones(BATCH, TOKENS, WIDTH) * torch.arange(TOKENS).remainder(3)[None, :, None]
    tokens = forward(recorded, attention=torch.arange(TOKENS).remainder(2).float().expand(BATCH, -1).clone())
    chosen = tokens.choose_images(hidden, 0.5, name)
    scores = SCORES[name].scores(inputs_of(tokens, hidden, chosen.counts))
    for row in range(BATCH):
        candidates = tokens.images.mask[row].nonzero().flatten().tolist()
        ranked = sorted(candidates, key=lambda place: (-scores[row, place].item(), place))
        assert chosen.mask[row].nonzero().flatten().tolist() == sorted(ranked[: chosen.counts[row]])


@every_score
def test_a_token_that_was_removed_for_good_is_not_chosen_again(name):
    tokens = forward()
    tokens.remaining = first = tokens.choose_images(hidden_states(), 0.5, name)
    second = tokens.choose_images(-hidden_states().flip(-1), 0.3, name)
    assert not (second.mask & ~first.mask).any()
    assert second.counts == [int(0.3 * count + 1e-9) for count in (12, 13, 14, 0)]


@every_score
def test_a_score_of_positions_only_shares_one_choice_between_layers(name):
    tokens, hidden = forward((False,) * BATCH), hidden_states()
    by_position = SCORES[name].depends_on_positions_only(inputs_of(tokens, hidden, [3, 5, 7, 0]))
    one, other = tokens.choose_images(hidden, 0.5, name), tokens.choose_images(hidden * 2, 0.5, name)
    assert (one is other) == by_position
    if by_position:
        changed = inputs_of(tokens, hidden.flip(1), [3, 5, 7, 0])
        plain = inputs_of(tokens, hidden, [3, 5, 7, 0])
        assert torch.equal(SCORES[name].scores(changed), SCORES[name].scores(plain))


def test_attention_falls_back_to_uniform_in_rows_without_any():
    hidden = hidden_states()
    mixed = forward((True, False, True, False)).choose_images(hidden, 0.5, "attention").mask
    assert torch.equal(mixed[1], forward().choose_images(hidden, 0.5, "uniform").mask[1])
    assert torch.equal(mixed[[0, 2]], forward().choose_images(hidden, 0.5, "attention").mask[[0, 2]])


def test_policies_and_their_schema_take_the_names_of_the_table():
    assert {Policy(token_selection=TokenSelection(score=name)).token_selection.score for name in SCORES} == {*SCORES}
    with pytest.raises(PolicyError, match="'attention', 'norm' or 'uniform'"):
        Policy.read(document("schema: skipsearch/policy/v1\ntoken_selection: {score: best}\n"))
    key = policy_schema()["$defs"]["TokenSelection"]["properties"]["score"]
    assert key["enum"] == [*SCORES]
    assert all(f"`{name}`: {score.meaning}" in key["description"] for name, score in SCORES.items())


def document(text: str):
    from skipsearch.policies.document import Document

    return Document(text, "policy.yaml", PolicyError)


@every_score
def test_the_page_about_policies_describes_each_score(name):
    page = Path(__file__).parents[2] / "policies" / "README.md"
    text = " ".join(page.read_text(encoding="utf-8").split())
    assert f"| `{name}` | {SCORES[name].meaning} |" in text


def test_the_table_can_be_read_without_torch():
    code = "import sys, skipsearch.policies.policy; print(*({'torch', 'transformers'} & {*sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
