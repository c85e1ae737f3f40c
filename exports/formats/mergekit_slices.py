"""The slices of a mergekit merge, and the scale of every tensor in them."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ...policies.choice import LAST_LAYER
from ...policies.document import Document, KeyPath, Problem
from ...policies.wording import short

# The projections of a Llama-like layer: by the last one of each sublayer, those before it.
PROJECTIONS = {
    "self_attn.o_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.down_proj": ("mlp.gate_proj", "mlp.up_proj"),
}
NORMS = ("input_layernorm", "post_attention_layernorm")
# Outside the layers: the tensors that the first and the last slice scale.
FIRST, LAST = ("model.embed_tokens.weight",), ("model.norm.weight", "lm_head.weight")

Setting = tuple[KeyPath, Any]


def tensor_name(layer: int, part: str) -> str:
    """The name of a tensor in a checkpoint."""
    return f"model.layers.{layer}.{part}.weight"


class Slices:
    """The layers of one model that a passthrough merge keeps.

    Args:
        document: The merge.
        num_layers: The number of layers of the model; None where it is not given.

    Attributes:
        model: The model as mergekit writes it.
        num_layers: The number of its layers.

    Raises:
        PolicyError: the merge is not made of slices, each from one model and without a gradient of scales; or the
            number of layers is not given.
    """

    def __init__(self, document: Document, num_layers: int | None) -> None:
        self._document = document
        self._data: Mapping[Any, Any] = document.data
        self._refuse(self._shape_problems())
        self._sources: list[tuple[KeyPath, Mapping[Any, Any]]] = [
            (("slices", place, "sources", 0), entry["sources"][0]) for place, entry in enumerate(self._data["slices"])
        ]
        self._refuse(problem for path, source in self._sources for problem in self._source_problems(path, source))
        self._ranges = [range(*source["layer_range"]) for _, source in self._sources]
        self._refuse(
            problem for path, setting in self._every_setting().items() for problem in self._setting(path, setting)
        )
        self.model: str = self._sources[0][1]["model"]
        if num_layers is None:
            text = f"the file does not say how many layers {self.model} has"
            hint = "give the number of layers of that model, as in --num-layers 32"
            raise document.failure([document.problem(("slices",), text)], hint)
        self.num_layers = num_layers

    @property
    def kept(self) -> set[int]:
        """The layers that the merge keeps."""
        return {layer for layers in self._ranges for layer in layers}

    def require_one_model(self) -> None:
        """Refuse what a policy cannot say.

        Raises:
            PolicyError: layers of several models, repeated or in another order, or scaled by something else than 0.
        """
        self._refuse([*self._order_problems(), *self._scale_problems()])

    def zeroed(self, part: str) -> set[int]:
        """The kept layers in which a projection is scaled by 0."""
        return {
            layer
            for place, layers in enumerate(self._ranges)
            for layer in layers
            if self._scale(place, tensor_name(layer, part)) == 0
        }

    def _refuse(self, problems: Iterable[Problem]) -> None:
        if found := [*problems]:
            raise self._document.failure(found)

    def _shape_problems(self) -> list[Problem]:
        """Mistakes above the sources."""
        problem = self._document.problem
        problems = []
        if (method := self._data.get("merge_method")) != "passthrough":
            text = f"found {short(method)}, expected 'passthrough': other methods compute new weights"
            problems.append(problem(("merge_method",), text))
        slices = self._data.get("slices")
        if not isinstance(slices, list) or not slices:
            return [*problems, problem(("slices",), "expected a list of slices of one model")]
        for place, entry in enumerate(slices):
            sources = entry.get("sources") if isinstance(entry, dict) else None
            if not isinstance(sources, list) or len(sources) != 1 or not isinstance(sources[0], dict):
                problems.append(problem(("slices", place), "expected `sources` with one source"))
        return problems

    def _source_problems(self, path: KeyPath, source: Mapping[Any, Any]) -> Iterator[Problem]:
        """Mistakes in one source."""
        model, span = source.get("model"), source.get("layer_range")
        if not isinstance(model, str) or "+" in model:
            text = f"found {short(model)}, expected a model without a LoRA"
            yield self._document.problem((*path, "model"), text)
        ends = span if isinstance(span, list) and all(type(end) is int for end in span) else []
        if len(ends) != 2 or not 0 <= ends[0] < ends[1] <= LAST_LAYER + 1:
            text = f"found {short(span)}, expected the first layer and one past the last"
            yield self._document.problem((*path, "layer_range"), text)

    def _settings(self, place: int) -> Iterator[Setting]:
        """The settings of `scale` that hold in a slice, the strongest first."""
        slice_path = ("slices", place)
        owners = ((self._sources[place][0], self._sources[place][1]), (slice_path, self._data["slices"][place]),
                  ((), self._data))  # fmt: skip
        for path, owner in owners:
            parameters = owner.get("parameters")
            if isinstance(parameters, dict) and "scale" in parameters:
                yield (*path, "parameters", "scale"), parameters["scale"]

    def _every_setting(self) -> dict[KeyPath, Any]:
        return {path: setting for place in range(len(self._sources)) for path, setting in self._settings(place)}

    def _setting(self, path: KeyPath, setting: Any) -> Iterator[Problem]:
        """Mistakes in one setting of `scale`."""
        names = [*FIRST, *LAST, *(name for layers in self._ranges for layer in layers for name in names_of(layer))]
        for entry in conditions(setting):
            whole = isinstance(entry, dict) and {*entry} <= {"filter", "value"} and is_number(entry.get("value"))
            if not whole:
                yield self._document.problem(path, f"found {short(entry)}, expected a number, or a value with a filter")
            elif not any(is_met(entry, name) for name in names):
                text = f"the filter {short(entry['filter'])} names no tensor of a Llama-like layer"
                yield self._document.problem(path, text)

    def _scale(self, place: int, name: str) -> float:
        """The factor of a tensor in a slice."""
        for _, setting in self._settings(place):
            for entry in conditions(setting):
                if is_met(entry, name):
                    return float(entry["value"])
        return 1.0

    def _order_problems(self) -> Iterator[Problem]:
        """Layers of another model, out of order, or beyond the last."""
        last = -1
        for (path, source), layers in zip(self._sources, self._ranges, strict=True):
            if source["model"] != self.model:
                found = f"found {source['model']!r}, expected {self.model!r} as in the first slice"
                yield self._document.problem((*path, "model"), found)
            if layers[0] <= last:
                found = f"layer {layers[0]} comes after layer {last}; a policy keeps each layer once, in its order"
                yield self._document.problem((*path, "layer_range"), found)
            if layers[-1] >= self.num_layers:
                found = f"found layer {layers[-1]}, expected 0 to {self.num_layers - 1}"
                yield self._document.problem((*path, "layer_range"), found)
            last = layers[-1]

    def _scale_problems(self) -> Iterator[Problem]:
        """In each slice the first tensor whose scale is neither 1, nor the 0 that skips its sublayer."""
        for place, (path, _) in enumerate(self._sources):
            for name in self._unscaled(place):
                if (scale := self._scale(place, name)) != 1:
                    text = f"{name} is scaled by {scale:g}, expected 1, or 0 for o_proj or down_proj"
                    yield self._document.problem(path, text)
                    break

    def _unscaled(self, place: int) -> Iterator[str]:
        """The tensors of a slice that a policy cannot scale: all but those of sublayers of which nothing comes out."""
        for layer in self._ranges[place]:
            yield from (tensor_name(layer, part) for part in NORMS)
            for output, inner in PROJECTIONS.items():
                if self._scale(place, tensor_name(layer, output)) != 0:
                    yield from (tensor_name(layer, part) for part in (output, *inner))
        yield from FIRST if place == 0 else ()
        yield from LAST if place == len(self._ranges) - 1 else ()


def names_of(layer: int) -> list[str]:
    """The tensors of a layer."""
    inner = (part for output, parts in PROJECTIONS.items() for part in (output, *parts))
    return [tensor_name(layer, part) for part in (*NORMS, *inner)]


def conditions(setting: Any) -> list[Any]:
    """A setting as a list of conditional values."""
    if is_number(setting):
        return [{"value": setting}]
    return setting if isinstance(setting, list) else [setting]


def is_number(value: Any) -> bool:
    """True for a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_met(condition: Mapping[Any, Any], name: str) -> bool:
    """True where a conditional value is for a tensor."""
    wanted = condition.get("filter")
    return wanted in (None, "*") or str(wanted) in name
