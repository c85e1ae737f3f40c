"""What a policy promises on every model family: dense without choices, and a skipped layer as if it did not exist."""

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from ..policies.apply import apply_policy
from ..policies.choice import CHOICES, LayerChoice
from ..policies.families.layers import decoder_layers, layer_list
from ..policies.policy import Policy

PLAIN = ("skip_ffn", "skip_attention", "skip_layer", "parallel")


class FamilyContract:
    """Subclass it, and override the two fixtures with a tiny model and inputs for its forward pass.

    Example:
        >>> class TestMine(FamilyContract):
        ...     @pytest.fixture
        ...     def model(self):
        ...         return MineForCausalLM(MineConfig(num_hidden_layers=4, ...)).eval()
        ...
        ...     @pytest.fixture
        ...     def inputs(self):
        ...         return {"input_ids": torch.arange(12)[None]}
    """

    removable = True  # False where what a layer computes depends on its number

    @pytest.fixture
    def model(self) -> Any:
        """A tiny model with random weights, in evaluation mode."""
        raise NotImplementedError

    @pytest.fixture
    def inputs(self) -> Mapping[str, Any]:
        """Arguments of its forward pass."""
        raise NotImplementedError

    def test_its_layers_are_known(self, model: Any) -> None:
        """Every layer is taken apart into attention, FFN, norms and residuals."""
        assert len(decoder_layers(model)) == len(layer_list(model)) > 1

    def test_the_empty_policy_is_dense(self, model: Any, inputs: Mapping[str, Any]) -> None:
        """A policy without choices gives the dense logits, bit for bit."""
        dense = logits(model, inputs)
        with apply_policy(model, Policy()):
            assert torch.equal(logits(model, inputs), dense)

    @pytest.mark.parametrize("name", PLAIN)
    def test_a_choice_acts_and_goes(self, model: Any, inputs: Mapping[str, Any], name: str) -> None:
        """A choice in one layer changes the logits, and removing the policy brings the dense ones back."""
        dense = logits(model, inputs)
        with apply_policy(model, Policy(layers={1: CHOICES[name]})):
            changed = logits(model, inputs)
        assert torch.isfinite(changed).all() and not torch.equal(changed, dense)
        assert torch.equal(logits(model, inputs), dense)

    @pytest.mark.parametrize("name", PLAIN)
    def test_a_cache_changes_nothing(self, model: Any, inputs: Mapping[str, Any], name: str) -> None:
        """With a key-value cache the next token has the same logits as without."""
        with apply_policy(model, Policy(layers={1: CHOICES[name]})), torch.no_grad():
            first = model(**inputs, use_cache=True)
            token = first.logits[:, -1:].argmax(-1)
            more = {**inputs, "input_ids": torch.cat([inputs["input_ids"], token], 1)}
            if "attention_mask" in more:
                more["attention_mask"] = torch.nn.functional.pad(more["attention_mask"], (0, 1), value=1)
            whole = logits(model, {**more, "use_cache": False})
            cached = model(input_ids=token, past_key_values=first.past_key_values).logits
        torch.testing.assert_close(cached[:, -1], whole[:, -1], rtol=1e-4, atol=1e-4)

    def test_a_skipped_layer_is_as_if_it_did_not_exist(self, model: Any, inputs: Mapping[str, Any]) -> None:
        """Skipping a layer is the model without that layer."""
        if not self.removable:
            pytest.skip("what a layer computes depends on its number")
        shorter = copy.deepcopy(model)
        del layer_list(shorter)[1]
        with apply_policy(model, Policy(layers={1: LayerChoice(attention="skip", ffn="skip")})):
            torch.testing.assert_close(logits(model, inputs), logits(shorter, {**inputs, "use_cache": False}))


def logits(model: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
    """Shape (rows, tokens, vocabulary)."""
    with torch.no_grad():
        found: torch.Tensor = model(**inputs).logits
    return found
