"""Caching values that do not depend on the policy, so that a worker computes them once and not in every trial."""

import copy
import functools
import hashlib
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from ..engine.shared import LEAST_BYTES, SharedStore, as_arrays, as_tensors, is_on_cpu

FEATURES = "get_image_features"


class Memo:
    """A cache of values by key, up to a number of bytes.

    A full cache takes no new values and drops none. Every trial asks in the same order, so dropping the oldest value
    would always drop the next one that is needed.

    Args:
        budget_bytes: The limit; tensors count in full on every device, numbers in lists as eight bytes.
        store: Where all processes of the machine keep large values once, which do not count; None keeps all here.
    """

    def __init__(self, budget_bytes: int, store: SharedStore | None = None) -> None:
        self.budget_bytes = budget_bytes
        self.store = store
        self.used_bytes = 0
        self._kept: dict[Hashable, tuple[Any, Any]] = {}

    def get(
        self,
        key: Hashable,
        make: Callable[[], Any],
        pinned: Any = None,
        content: Callable[[], Hashable] | None = None,
    ) -> Any:
        """The value of a key, computed on first use.

        Args:
            key: The key.
            make: Computes the value.
            pinned: Objects whose `id` is part of the key; keeping them alive prevents that another gets the same id.
            content: A key that is equal in every process, where the value may be shared.
        """
        if key in self._kept:
            return self._kept[key][0]
        value, size = self._make(make, content)
        if self.used_bytes + size <= self.budget_bytes:
            self._kept[key] = (value, pinned)
            self.used_bytes += size
        return value

    def _make(self, make: Callable[[], Any], content: Callable[[], Hashable] | None) -> tuple[Any, int]:
        """A value, and its bytes in this process: none where all processes of the machine have it once."""
        if self.store is None or content is None:
            value = make()
            return value, size_in_bytes(value)
        key = hashlib.blake2b(repr(content()).encode()).hexdigest()
        found = self.store.find(key)
        if found is None:
            value = make()
            size = size_in_bytes(value)
            if size < LEAST_BYTES or not is_on_cpu(value):
                return value, size
            found = self.store.keep(key, as_arrays(value))
            if found is None:
                return value, size
        return as_tensors(found), 0


def size_in_bytes(value: Any) -> int:
    """Bytes of all tensors and numbers in nested values."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(size_in_bytes(part) for part in value.values())
    if isinstance(value, list | tuple):
        return sum(size_in_bytes(part) for part in value)
    if is_dataclass(value):
        return sum(size_in_bytes(part) for part in vars(value).values())
    return 8


def digest(value: Any) -> Hashable:
    """A key that is equal for values of equal content, tensors included."""
    if isinstance(value, Tensor):
        content = value.detach().cpu().reshape(-1).view(torch.uint8)
        # BLAKE2 hashes about a gigabyte a second, far faster than a vision tower processes the same pixels.
        return value.shape, value.dtype, str(value.device), hashlib.blake2b(content.numpy().data).digest()
    if isinstance(value, Mapping):
        return tuple((key, digest(part)) for key, part in sorted(value.items()))
    if isinstance(value, list | tuple):
        return tuple(digest(part) for part in value)
    return repr(value)


@contextmanager
def cached_image_features(
    model: nn.Module, memo: Memo, weights: Callable[[], Hashable] = lambda: None
) -> Iterator[None]:
    """Cache the image features of a model in this context, then restore the model.

    Whole calls are cached, not single images, because the composition of a batch may change the last bits.

    Args:
        model: The model.
        memo: The cache.
        weights: Identifies the weights that the model runs with, which trained ones may replace.
    """
    owners = [module for module in model.modules() if hasattr(type(module), FEATURES)]
    # A wrapper's method calls the method of the model inside, so the innermost owner sees every call.
    innermost = [owner for owner in owners if not any(part in owners for part in owner.modules() if part is not owner)]
    with ExitStack() as stack:
        for owner in innermost:
            stack.enter_context(_cached_features(owner, memo, weights))
        yield


@contextmanager
def _cached_features(owner: nn.Module, memo: Memo, weights: Callable[[], Hashable]) -> Iterator[None]:
    original = getattr(owner, FEATURES)
    before = vars(owner).get(FEATURES)

    # `generate` reads the signature to decide which arguments to pass; `wraps` keeps it.
    @functools.wraps(original)
    def features(*args: Any, **kwargs: Any) -> Any:
        key = (FEATURES, weights(), digest(args), digest(kwargs))
        return shallow_copy(
            memo.get(key, lambda: without_states(original(*args, **kwargs)), content=lambda: ("features", key))
        )

    vars(owner)[FEATURES] = features
    try:
        yield
    finally:
        del vars(owner)[FEATURES]
        if before is not None:
            vars(owner)[FEATURES] = before


def without_states(output: Any) -> Any:
    """The output without hidden states and attentions of the vision tower, which no decoder reads."""
    if not isinstance(output, ModelOutput):
        return output
    unread = ("hidden_states", "attentions")
    return type(output)(**{key: value for key, value in output.items() if key not in unread})


def shallow_copy(output: Any) -> Any:
    """A copy of a cached output, because `generate` sets fields of it."""
    return type(output)(**output) if isinstance(output, ModelOutput) else copy.copy(output)
