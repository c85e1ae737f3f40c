"""Recording attention calls, to read the attention of one query without running eager attention."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import CellType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import AttentionInterface

from ..errors import ModelError
from ..scores.score import Record, rounded
from ..scores.table import WITHOUT_RECORDS
from .patch import Patch

SMALLEST_NORM = 1e-6  # a smaller norm of a key is taken for this one


@dataclass
class AttentionCall:
    """The inputs of one attention call, with positions applied and cached keys included.

    Attributes:
        query: Shape (batch, heads, queries, width).
        key: Shape (batch, key heads, keys, width).
        mask: Boolean or additive, shape (batch or 1, 1, queries, keys); None where the attention is causal.
        scaling: What the logits are multiplied by.
        softcap: Bound of the logits (Gemma 2); None where there is none.
    """

    query: Tensor
    key: Tensor
    mask: Tensor | None
    scaling: float
    softcap: float | None

    def of_first(self, keys: int) -> "AttentionCall":
        """The call over its first keys; a static cache has empty columns after them."""
        return replace(self, key=self.key[:, :, :keys])

    def figures(self, record: Record, query_index: Tensor | None) -> Tensor:
        """What is recorded of each key, float32, shape (batch, keys); see `Record` and `weights`."""
        if record == "key_norm":
            return rounded(self.key.float().norm(dim=-1).mean(dim=1).clamp_min(SMALLEST_NORM).reciprocal())
        return self.weights(query_index)

    def weights(self, query_index: Tensor | None) -> Tensor:
        """The attention weights of one query of each row over all keys, mean over the heads.

        Args:
            query_index: Which query, shape (batch,); None for the last one.

        Returns:
            Shape (batch, keys), float32.
        """
        batch, heads, _, width = self.query.shape
        groups = self.key.shape[1]
        if query_index is None:
            query = self.query[:, :, -1]
        else:
            query = self.query[torch.arange(batch, device=query_index.device), :, query_index]
        grouped, keys = query.float().reshape(batch * groups, -1, width), self.key.float().flatten(0, 1)
        # One operation multiplies and scales; its first argument does not count.
        logits = torch.baddbmm(grouped[..., :1], grouped, keys.transpose(-1, -2), beta=0, alpha=self.scaling)
        logits = logits.view(batch, heads, -1)
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        masked = self._masked_keys(query_index)
        if masked is not None:
            logits = logits.masked_fill(masked[:, None], float("-inf"))
        return logits.softmax(-1).mean(dim=1)

    def _masked_keys(self, query_index: Tensor | None) -> Tensor | None:
        """The keys that one query of each row does not see, shape (batch, keys); None where it sees all of them."""
        queries, keys = self.query.shape[2], self.key.shape[2]
        if self.mask is None:
            if query_index is None:
                return None
            places = torch.arange(keys, device=query_index.device)
            return places[None] > (query_index + keys - queries)[:, None]
        mask = self.mask[:, 0].expand(self.query.shape[0], -1, -1)
        if query_index is None:
            mask = mask[:, -1]
        else:
            mask = mask[torch.arange(len(query_index), device=query_index.device), query_index]
        mask = mask[:, :keys]
        return ~mask if mask.dtype == torch.bool else mask <= torch.finfo(mask.dtype).min / 2


class WatchedAttention:
    """Records the calls of one attention module, in the threads that ask for it.

    The module runs a copy of its forward, whose global names are the same but for transformers' table of attention
    functions: in its place stands one that records. So nothing that other modules use is replaced.

    Args:
        module: The attention module.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._patch = Patch(module)
        self._thread = threading.local()
        self._forward: Callable[..., Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_module": self._module, "_patch": self._patch}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _thread=threading.local(), _forward=None)

    @property
    def calls(self) -> list[AttentionCall] | None:
        """Where the running thread records its calls; None where it does not record."""
        return getattr(self._thread, "calls", None)

    def install(self) -> None:
        """Let the module run the copy of its forward."""
        self._patch.set(self.run)

    def uninstall(self) -> None:
        """Restore the module."""
        self._patch.undo()

    @contextmanager
    def recorded(self) -> Iterator[list[AttentionCall]]:
        """Record the calls of the module in this thread."""
        calls: list[AttentionCall] = []
        before = self.calls
        self._thread.calls = calls
        try:
            yield calls
        finally:
            self._thread.calls = before

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module; this replaces its forward."""
        if self.calls is None:
            return self._patch.original(*args, **kwargs)
        if self._forward is None:
            self._forward = with_other_globals(self._patch.original, self._other_table)
        return self._forward(*args, **kwargs)

    def _other_table(self, value: Any) -> Any:
        """What stands in place of a global of the forward: for a table of attention functions, one that records."""
        return RecordingTable(value, self) if isinstance(value, AttentionInterface) else value


class RecordingTable:
    """transformers' table of attention functions, as the forward of one watched module sees it.

    Args:
        table: The table.
        watch: The module.
    """

    def __init__(self, table: AttentionInterface, watch: WatchedAttention) -> None:
        self._table = table
        self._watch = watch

    def get_interface(self, name: str, default: Any) -> Any:
        """The attention function of a name, which records its inputs first."""
        attend, calls = self._table.get_interface(name, default), self._watch.calls

        def record_and_attend(
            owner: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, *args: Any, **kw: Any
        ) -> Any:
            if calls is not None:
                scaling = kw.get("scaling")
                scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
                calls.append(AttentionCall(query, key, mask, scale, kw.get("softcap")))
            return attend(owner, query, key, value, mask, *args, **kw)

        return record_and_attend


def with_other_globals(method: Callable[..., Any], replace: Callable[[Any], Any]) -> Callable[..., Any]:
    """A copy of a method with a global namespace of its own; what is no method of a Python function stays as it is.

    Args:
        method: The bound method.
        replace: Gives the value of each global name from its present one.
    """
    function = getattr(method, "__func__", None)
    if not isinstance(function, FunctionType):
        return method
    return MethodType(copied(function, replace), method.__self__)  # type: ignore[attr-defined]


def copied(function: FunctionType, replace: Callable[[Any], Any]) -> FunctionType:
    """A copy of a function with a global namespace of its own, and where it is decorated, of what the decorator wraps.

    Args:
        function: The function.
        replace: See `with_other_globals`.
    """
    # Without a name of a module in it, torch.compile looks names up here and not in that module.
    names = {name: replace(value) for name, value in function.__globals__.items() if name != "__name__"}
    wrapped, closure = getattr(function, "__wrapped__", None), function.__closure__
    if isinstance(wrapped, FunctionType) and closure is not None:
        inner = CellType(copied(wrapped, replace))
        closure = tuple(inner if cell.cell_contents is wrapped else cell for cell in closure)
    copy = FunctionType(function.__code__, names, function.__name__, function.__defaults__, closure)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def last_recorded(calls: list[AttentionCall], layer: int) -> AttentionCall:
    """The last recorded call of a layer's attention.

    Raises:
        ModelError: nothing was recorded: the attention does not use transformers' table of attention functions.
    """
    if not calls:
        first, *others = WITHOUT_RECORDS
        raise ModelError(
            "the attention of this model cannot be read to rank image tokens",
            [f"layer {layer} does not take its attention function from transformers' table"],
            f"set `token_selection: {{score: {first}}}`{''.join(f' or `{name}`' for name in others)}",
        )
    return calls[-1]


@contextmanager
def recorded_attention(module: nn.Module) -> Iterator[list[AttentionCall]]:
    """Record the calls of a module that no policy watches, in this thread."""
    watch = WatchedAttention(module)
    watch.install()
    try:
        with watch.recorded() as calls:
            yield calls
    finally:
        watch.uninstall()
