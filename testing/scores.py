"""What every score of image tokens promises: finite repeatable scores, that a row has in every batch."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..policies.runtime.tokens import ForwardTokens
from ..policies.scores.score import ImageTokenScore
from ..policies.scores.table import interface_problems

TOKENS, WIDTH = 24, 8
RATIOS = (0.0, 0.1, 0.29, 0.5, 0.9)
# By row, where image tokens stand, and how many tokens pad the row on the left: one image, two images, images at the
# ends, a single token, and none.
IMAGES = ((slice(8, 20),), (slice(5, 9), slice(12, 21)), (slice(2, 12), slice(20, 24)), (slice(15, 16),), ())
PADDING = (6, 3, 0, 11, 9)
COUNTS = (12, 13, 14, 1, 0)
BATCH = len(COUNTS)
# Which rows have a record: all, none as in layer 0, and some.
RECORDED = ((True,) * BATCH, (False,) * BATCH, (True, False, True, False, False))


def check_score(score_class: type[ImageTokenScore]) -> None:
    """Hold a score against its contract; call it in a test of your own.

    Example:
        >>> def test_my_score_keeps_the_contract():
        ...     check_score(MyScore)

    Args:
        score_class: The class that the entry point in `skipsearch.token_scores` names.

    Raises:
        AssertionError: naming what does not hold.
    """
    problems = interface_problems(score_class, score_class.name)
    assert not problems, problems
    score = score_class()
    for recorded in RECORDED:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            check_values(score, sample_tokens(recorded), sample_states(dtype))
        check_ties(score, sample_tokens(recorded, ties=True))
        for ratio in RATIOS:
            check_choice(score, sample_tokens(recorded), ratio)
            for row in range(BATCH):
                check_row_alone(score, recorded, ratio, row)


def sample_tokens(recorded: Sequence[bool], ties: bool = False) -> ForwardTokens:
    """The tokens of one forward of five rows, padded on the left, as an earlier layer left them.

    Args:
        recorded: The rows with a record.
        ties: True for few different records, so that many tokens tie.
    """
    image = torch.zeros(BATCH, TOKENS, dtype=torch.bool)
    mask = torch.ones(BATCH, TOKENS, dtype=torch.long)
    for row, (slices, padding) in enumerate(zip(IMAGES, PADDING, strict=True)):
        for part in slices:
            image[row, part] = True
        mask[row, :padding] = 0
    # A processor may leave the image token's id in the padding.
    image[0, 0] = True
    tokens = ForwardTokens.read(image, mask, None)
    assert tokens is not None
    figures = torch.rand(BATCH, TOKENS, generator=torch.Generator().manual_seed(1))
    figures = figures.mul(2).floor() if ties else figures
    tokens.recorded = figures * torch.tensor(recorded)[:, None]
    tokens.has_record = list(recorded)
    return tokens


def sample_states(dtype: torch.dtype = torch.float32) -> Tensor:
    """Random hidden states of the same rows; padding has the largest, so a score that looked at it would choose it."""
    states = torch.randn(BATCH, TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))
    for row, padding in enumerate(PADDING):
        states[row, :padding] *= 100
    return states.to(dtype)


def scores_of(score: ImageTokenScore, tokens: ForwardTokens, hidden: Tensor, keep: Sequence[int]) -> Tensor:
    """The scores of all image tokens for layers that keep so many of each row."""
    return score.scores(tokens.score_inputs(hidden, list(keep)))


def check_values(score: ImageTokenScore, tokens: ForwardTokens, hidden: Tensor) -> None:
    """Scores are finite float32 numbers, one a token, equal for equal inputs, which are left alone."""
    keep = [min(count, 7) for count in COUNTS]
    inputs = (hidden, tokens.recorded, tokens.images.mask)
    before = [tensor.clone() for tensor in inputs]
    found = scores_of(score, tokens, hidden, keep).clone()
    assert found.shape == (BATCH, TOKENS) and found.dtype == torch.float32, f"found {found.dtype}, {found.shape}"
    assert found[tokens.images.mask].isfinite().all(), "scores of image tokens are not finite"
    assert torch.equal(found, scores_of(score, tokens, hidden, keep)), "equal inputs have other scores"
    assert all(map(torch.equal, before, inputs)), "the score changed its inputs"


def check_choice(score: ImageTokenScore, tokens: ForwardTokens, ratio: float) -> None:
    """Each row keeps the truncated share of its image tokens, no padding and no text, and none that was removed."""
    hidden = sample_states()
    chosen = tokens.choose_images(hidden, ratio, score)
    share = [int(ratio * count + 1e-9) for count in COUNTS]
    assert chosen.counts == chosen.mask.sum(dim=1).tolist() == share
    assert not (chosen.mask & ~tokens.images.mask).any(), "a token was chosen that stands for no image"
    by_position = score.depends_on_positions_only(tokens.score_inputs(hidden, share))
    if share != list(COUNTS) and by_position:
        assert tokens.choose_images(hidden * 2, ratio, score) is chosen
        keep = chosen.counts
        assert torch.equal(scores_of(score, tokens, hidden.flip(1), keep), scores_of(score, tokens, hidden, keep)), (
            "the score says that positions alone count, and hidden states do"
        )
    tokens.remaining = chosen
    again = tokens.choose_images(-hidden.flip(-1), ratio / 2, score)
    assert not (again.mask & ~chosen.mask).any(), "a token came back that was removed for good"


def check_ties(score: ImageTokenScore, tokens: ForwardTokens) -> None:
    """The highest scores are kept, and of equal ones the first."""
    # Few different norms and directions.
    hidden = torch.ones(BATCH, TOKENS, WIDTH) * torch.arange(TOKENS).remainder(3)[None, :, None]
    chosen = tokens.choose_images(hidden, 0.5, score)
    scores = scores_of(score, tokens, hidden, chosen.counts)
    for row in range(BATCH):
        candidates = tokens.images.mask[row].nonzero().flatten().tolist()
        ranked = sorted(candidates, key=lambda place: (-scores[row, place].item(), place))
        assert chosen.mask[row].nonzero().flatten().tolist() == sorted(ranked[: chosen.counts[row]])


def check_row_alone(score: ImageTokenScore, recorded: Sequence[bool], ratio: float, row: int) -> None:
    """A row keeps alone, without padding, what it keeps in a batch."""
    tokens, start = sample_tokens(recorded), PADDING[row]
    together = tokens.choose_images(sample_states(), ratio, score).mask[row, start:]
    image = tokens.images.mask[row : row + 1, start:]
    alone = ForwardTokens.read(image, None, None)
    if alone is None:
        assert not together.any()
        return
    alone = replace(alone, recorded=tokens.recorded[row : row + 1, start:], has_record=[recorded[row]])
    kept = alone.choose_images(sample_states()[row : row + 1, start:], ratio, score).mask[0]
    assert torch.equal(together, kept), f"row {row} keeps other tokens alone than in a batch, at ratio {ratio}"
