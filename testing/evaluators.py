"""What every evaluator promises: declared metrics, repeatable figures, and a model that is left as it was."""

import json
import math
import pickle
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pytest
import torch

from ..evaluators.base import Evaluator, Measurement, Options
from ..evaluators.subject import Subject
from ..policies.apply import apply_policy
from ..policies.choice import CHOICES
from ..policies.policy import Policy

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs")


class EvaluatorContract:
    """Subclass it, and override the two fixtures.

    Example:
        >>> class TestEnergy(EvaluatorContract):
        ...     @pytest.fixture
        ...     def subject(self):
        ...         return load_subject(ModelSpec(id="path/to/a/tiny/model", device="cpu"))
        ...
        ...     @pytest.fixture
        ...     def evaluator(self, subject):
        ...         return Energy(Energy.options(), subject)
    """

    is_repeatable = True  # False of what a clock measures

    @pytest.fixture
    def subject(self) -> Subject:
        """The loaded model."""
        raise NotImplementedError

    @pytest.fixture
    def evaluator(self, subject: Subject) -> Evaluator:
        """The evaluator on that model."""
        raise NotImplementedError

    @pytest.fixture
    def policy(self) -> Policy:
        """The policy that the model runs under."""
        return Policy(layers={0: CHOICES["skip_ffn"], 1: CHOICES["skip_attention"]})

    def test_declares_what_it_measures(self, evaluator: Evaluator) -> None:
        """Its options refuse unknown keys, and each metric has a unit, a direction and a meaning."""
        assert issubclass(evaluator.options, Options)
        with pytest.raises(ValueError, match="Extra inputs are not permitted"):
            evaluator.options.model_validate({"colour": "red"})
        assert evaluator.metrics
        for metric in evaluator.metrics.values():
            assert metric.unit and metric.text and metric.direction in ("maximize", "minimize")

    def test_measures_what_it_declares(self, evaluator: Evaluator, subject: Subject, policy: Policy) -> None:
        """Every metric has a finite figure that survives JSON and pickle, on each split that it has."""
        with apply_policy(subject.model, policy) as handle:
            for split in ("search", "report") if evaluator.splits else ("search",):
                measured = evaluator.measure(handle, split)
                assert set(measured) == set(evaluator.metrics)
                for measurement in measured.values():
                    assert math.isfinite(measurement.value) and measurement.n >= 1
                    assert json.loads(json.dumps(asdict(measurement)))["value"] == measurement.value
                    assert pickle.loads(pickle.dumps(measurement)) == measurement

    def test_leaves_the_model_as_it_was(self, evaluator: Evaluator, subject: Subject, policy: Policy) -> None:
        """Weights, attributes, hooks and the generation config are the same after a measurement."""
        with apply_policy(subject.model, policy) as handle:
            evaluator.measure(
                handle, "search"
            )  # What an evaluator needs once, such as an example's features, is there.
        weights, *rest = state(subject.model)
        with apply_policy(subject.model, policy) as handle:
            evaluator.measure(handle, "search")
            assert handle.prompt_ends is None
        after, *others = state(subject.model)
        assert rest == others
        assert all(torch.equal(after[name], tensor) for name, tensor in weights.items())

    def test_is_repeatable(self, evaluator: Evaluator, subject: Subject, policy: Policy) -> None:
        """The same policy has the same figures again."""
        if not self.is_repeatable:
            pytest.skip("a clock is not repeatable")

        def figures() -> Mapping[str, Any]:
            with apply_policy(subject.model, policy) as handle:
                return {name: plain(entry) for name, entry in evaluator.measure(handle, "search").items()}

        assert figures() == figures()


def plain(entry: Measurement) -> tuple[float, int, float | None]:
    """What two measurements are compared by."""
    return entry.value, entry.n, entry.stderr


def state(model: Any) -> tuple[Any, ...]:
    """All that could be left behind on a model: weights, and attributes and hooks of every module."""
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attributes = {(name, key) for name, module in model.named_modules() for key in vars(module)}
    hooks = [len(getattr(module, table)) for module in model.modules() for table in HOOKS]
    return weights, attributes, hooks, model.generation_config.to_dict(), model.training
