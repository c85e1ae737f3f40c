"""Gradients under a policy, for every kind of choice: held against finite differences and against the formulas."""

from __future__ import annotations

from functools import cache

import pytest
import support
import torch
from contract import ANSWER, CHOICES, DROPPED, FALLING, SCORES, answered, policy_of, rotated
from reference import reference
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from families import FAMILIES, LAYERS, batch_of, layer_list, run, without
from skipsearch import apply_policy

# Families, and whether the gradients of their random weights are flat enough for finite differences.
FAMILY = {"llama": True, "llava": True, "qwen2.5-vl": False}
# Small steps cross no border where other tokens are selected; norms are computed in float32, which bounds them below.
STEP, CHANGE = 1e-3, 0.02


@cache
def trained(name):
    """A model whose parameters take gradients, and a batch of prompts with answers."""
    model, batch = FAMILIES[name].build("sdpa"), batch_of(name)
    torch.manual_seed(3)
    return model.double(), answered(batch, torch.randint(3, 90, (len(batch.ids), ANSWER)))


def policies(name):
    """Every choice of every column in one policy, and the policies that remove tokens for good, with all scores."""
    columns = [column for column in CHOICES if support.works(name, column)]
    # Channels and heads are in another order under a policy: `test_widths.py` has the gradients of shares of them.
    choices = [one for column in columns for one in CHOICES[column] if not {"ffn_ratio", "head_ratio"} & {*one}]
    drawn = rotated(choices, name)[::LAYERS]
    removing = FALLING if name != "llama" else []
    found = [policy_of(support.taken(name, dict(enumerate(choices))), score)
             for choices, score in zip(drawn, SCORES * len(drawn), strict=False)]  # fmt: skip
    for number, layers in enumerate(removing):
        selection = (SCORES[number % len(SCORES)], "once", DROPPED[number % 2])
        found.append(policy_of(support.taken(name, layers), *selection))
    return found


def loss_of(model, handle, batch):
    """The loss of the answers of a padded batch under the policy."""
    handle.prompt_ends = torch.tensor([len(ids) - ANSWER for ids in batch.ids])
    try:
        logits = run(model, doubled(batch.padded("right")), gradients=True, use_cache=False).logits
    finally:
        handle.prompt_ends = None
    return sum(row_loss(batch.real(logits, row, "right"), ids) for row, ids in enumerate(batch.ids))


def row_loss(logits, ids):
    return cross_entropy(logits[-ANSWER - 1 : -1], torch.tensor(ids[-ANSWER:]))


def doubled(inputs):
    return {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}


def gradients(loss, parameters):
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [torch.zeros_like(p) if grad is None else grad for p, grad in zip(parameters, found, strict=True)]


def slope(model, handle, batch, parameters, direction, norm):
    """The derivative of the loss along a direction, by a central difference; it is about `norm`."""
    losses, step = [], min(STEP, CHANGE / norm)
    for sign in (1, -1):
        with torch.no_grad():
            for parameter, part in zip(parameters, direction, strict=True):
                parameter += sign * step * part
            losses.append(loss_of(model, handle, batch))
            for parameter, part in zip(parameters, direction, strict=True):
                parameter -= sign * step * part
    return (losses[0] - losses[1]).item() / (2 * step)


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True to a scalar")
@pytest.mark.parametrize(("name", "flat"), FAMILY.items())
def test_gradients_are_those_of_the_formulas_and_of_finite_differences(name, flat):
    model, batch = trained(name)
    parameters = list(model.parameters())
    # Of a family whose layers are like LLaVA's, every third policy.
    for policy in policies(name)[:: 1 if flat else 3]:
        with apply_policy(model, policy) as handle:
            found = gradients(loss_of(model, handle, batch), parameters)
            norm = torch.stack([grad.norm() for grad in found]).norm()
            found_slope = flat and slope(model, handle, batch, parameters, [grad / norm for grad in found], float(norm))
        rows = [(doubled(batch.alone(row)), ids) for row, ids in enumerate(batch.ids)]
        logits = [
            reference(model, batch.family, policy, inputs, len(ids) - ANSWER, gradients=True) for inputs, ids in rows
        ]
        wanted = gradients(sum(row_loss(one, ids) for one, (_, ids) in zip(logits, rows, strict=True)), parameters)
        for (key, _), one, other in zip(model.named_parameters(), found, wanted, strict=True):
            assert torch.allclose(one / norm, other / norm, rtol=0, atol=1e-6), f"{key} {policy}"
        assert not flat or found_slope == pytest.approx(norm.item(), rel=1e-3), policy


@pytest.mark.parametrize("name", ["llama", "llava"])
def test_a_step_computes_no_more_than_that_of_a_model_without_the_skipped_layers(name):
    model, batch = FAMILIES[name].build("sdpa"), batch_of(name)
    inputs = batch.padded("right")

    def step_flops(model):
        counter = FlopCounterMode(display=False)
        with counter:
            run(model, inputs, gradients=True, use_cache=False).logits.sum().backward()
        return counter.get_total_flops()

    dense, shorter = step_flops(model), step_flops(without(model, {1, 2}))
    with apply_policy(
        model, policy_of({1: {"attention": "skip", "ffn": "skip"}, 2: {"attention": "skip", "ffn": "skip"}})
    ):
        model.zero_grad()
        assert step_flops(model) == shorter < dense
    assert all(p.grad is None for layer in (1, 2) for p in layer_list(model)[layer].parameters())
