"""Image tokens that are merged into others when they are removed; the contract suite has whole models."""

from __future__ import annotations

import pytest
import slow_scores
import torch

from families import batch_of, built, run
from skipsearch import Policy, apply_policy
from skipsearch.policies.document import Document
from skipsearch.policies.errors import PolicyError
from skipsearch.policies.runtime.prefix import PrefixStates
from skipsearch.policies.scores.merge import merge_removed
from skipsearch.policies.scores.table import SCORES
from skipsearch.testing.scores import BATCH, COUNTS, sample_states, sample_tokens

PYRAMID = {1: {"token_ratio": 0.6}, 2: {"token_ratio": 0.3}}


def policy_of(layers, dropped="merge", score="uniform"):
    selection = {"score": score, "reselect": "once", "dropped": dropped}
    return Policy.model_validate({"layers": layers, "token_selection": selection})


def test_a_pyramid_carries_sizes_on_and_keeps_the_sum():
    tokens, hidden, sizes = sample_tokens((False,) * BATCH), sample_states(), None
    images = tokens.images
    total = (hidden * images.mask[..., None]).sum(dim=1)
    for ratio in (0.7, 0.4, 0.15):
        kept = tokens.choose_images(hidden, ratio, SCORES["diverse"])
        hidden, sizes = merge_removed(hidden, images, kept, sizes)
        images = tokens.remaining = kept
        weight = sizes * images.mask
        for row, count in enumerate(COUNTS):
            if images.counts[row]:
                assert weight[row].sum() == count
                torch.testing.assert_close((hidden[row] * weight[row, :, None]).sum(dim=0), total[row])


def test_each_removed_token_goes_to_the_kept_one_that_it_resembles_most():
    tokens, before = sample_tokens((False,) * BATCH), sample_states()
    kept = tokens.choose_images(before, 0.3, SCORES["norm"])
    given = torch.rand(before.shape[:2], generator=torch.Generator().manual_seed(2)).mul(4).ceil()
    hidden, sizes = merge_removed(before, tokens.images, kept, given)
    for row in range(BATCH):
        places = kept.mask[row].nonzero().flatten().tolist()
        expected, size = before[row].clone(), given[row].clone()
        for token in (tokens.images.mask & ~kept.mask)[row].nonzero().flatten().tolist() if places else []:
            nearest = min(places, key=lambda place: slow_scores.distance(before[row, token], before[row, place]))
            expected[nearest] = expected[nearest] * size[nearest] + before[row, token] * given[row, token]
            size[nearest] += given[row, token]
            expected[nearest] /= size[nearest]
        torch.testing.assert_close(hidden[row], expected)
        assert torch.equal(sizes[row], size)


def test_merging_changes_what_once_computes_and_a_ratio_of_0_merges_nothing():
    model, inputs = built("llava", "sdpa"), batch_of("llava").padded()

    def logits(policy):
        with apply_policy(model, policy):
            return run(model, inputs).logits

    assert not torch.equal(logits(policy_of(PYRAMID)), logits(policy_of(PYRAMID, "discard")))
    gone = {1: {"token_ratio": 0.0}}
    assert torch.equal(logits(policy_of(gone)), logits(policy_of(gone, "discard")))
    assert policy_of(gone).fingerprint == policy_of(gone, "discard").fingerprint


def test_hidden_states_that_are_reused_carry_the_sizes():
    model, inputs, states = built("llava", "sdpa"), batch_of("llava").padded(), PrefixStates(1 << 24)
    for last in ({}, {3: {"token_ratio": 0.2}}, {3: {"ffn": "skip", "token_ratio": 0.1}}):
        with apply_policy(model, policy_of(PYRAMID | last)) as handle:
            expected = run(model, inputs, use_cache=False).logits
            with states.reused(handle, "batch"):
                assert torch.equal(run(model, inputs, use_cache=False).logits, expected)
    assert states.run < states.asked


def test_merging_without_once_is_refused_with_a_hint():
    text = "schema: skipsearch/policy/v1\ntoken_selection: {dropped: merge}\n"
    with pytest.raises(PolicyError, match="found dropped: merge with reselect: each_layer.*write `reselect: once`"):
        Policy.read(Document(text, "policy.yaml", PolicyError))
