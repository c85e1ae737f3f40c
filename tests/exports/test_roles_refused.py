"""Every target that writes weights or a list of sublayers refuses roles of tokens by name."""

from __future__ import annotations

import pytest

from families import built
from skipsearch import LayerChoice, Policy
from skipsearch.exports.registry import OWN, target_class
from skipsearch.exports.target import Source
from skipsearch.policies.choice import CHOICES

ROLES = {
    0: CHOICES["freeze_image"],
    1: LayerChoice(attention="keys_only", phase="prefill"),
    2: LayerChoice(attention="queries_only", ffn="skip"),
    3: LayerChoice(token_ratio=0.5, rest="attention", evict=True),
    4: LayerChoice(token_ratio=0.5, phase="decode"),
}


@pytest.mark.parametrize("name", [name for name in OWN if name != "hub"])
def test_roles_are_refused_by_name(name):
    source = Source(built("llava", "sdpa"), id="some/model")
    reasons = "\n".join(target_class(name)().can(Policy(layers=ROLES), source))
    for index, choice in ROLES.items():
        assert f"no {choice.label} in layer {index}" in reasons
