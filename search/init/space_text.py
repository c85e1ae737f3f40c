"""The text of a new space file, with a comment for each key."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from ...evaluators.base import available, declared_metrics, evaluator_class
from ...evaluators.subject import ModelSpec
from ..space.space import SCHEMA
from .allowed import FURTHER, OFFERED, PAIR, Allowed
from .proposal import QUALITY, Rule, Wishes

COLUMN = 46  # where comments begin
LINES = {
    "attention": ("[run, skip]", "skip: no attention, and no keys and values of the layer"),
    "ffn": ("[run, skip]", "skip: no feed-forward network"),
    "wiring": ("[sequential, parallel]", "parallel: the FFN reads the layer's input, as the attention does"),
    "ffn_ratio": ("[1, 0.75, 0.5]", "the share of the FFN's channels that run"),
    "token_ratio": ("[1, 0.75, 0.5, 0.25]", "the share of the image tokens that the layer processes"),
}
OPTIONAL_LINES = {
    "head_ratio": ("head_ratio: [1, 0.75, 0.5]", "the share of the attention's heads that run"),
    "window": ("window: [null, 2]", "an image token sees others so far away; in place of token_ratio"),
    PAIR: ("wiring: [sequential, parallel, pair]", "pair: the next layer reads its input too; none in the last layer"),
}
IMAGE_LIMITS, TEXT_LIMITS = (100, 500), (200, 1000)  # examples of each task that guide the search, and that report
SCHEDULED_DEPTH = 8  # layers; patterns of fewer are hardly told apart
SUBLAYERS = ("attention", "ffn")
COSTS = ("flops", "latency", "memory")  # evaluators that every space has


@dataclass(frozen=True)
class SpaceFile:
    """The file of a new space.

    Attributes:
        source: The model as it was given to the command.
        spec: How to load it; its id is as the space file has it.
        found: What its family allows.
        rules: The rules of its layers.
        tasks: The tasks.
        costs: The metrics to minimise.
        wishes: What the command line asks for.
        takes_images: True where the model takes images.
        has_chat_template: True where prompts can be put into a chat template.
        notes: Further comments for the head of the file.
    """

    source: str
    spec: ModelSpec
    found: Allowed
    rules: Sequence[Rule]
    tasks: Sequence[str]
    costs: Sequence[str]
    wishes: Wishes
    takes_images: bool
    has_chat_template: bool
    notes: Sequence[str] = ()

    def text(self) -> str:
        """The text of the file."""
        parts = (self._head(), self._model(), self._layers(), self._images(), self._evaluate(), self._goals())
        return "\n\n".join("\n".join(part) for part in map(list, parts) if part) + "\n"

    def _head(self) -> Iterator[str]:
        names = " and ".join(self.found.layer_names)
        yield f"# A space for {self.source}: {self.found.num_layers} layers ({names})."
        yield "# What they allow was tried on a small model of random weights, made from its configuration."
        yield from (remark(note, "") for note in self.notes)
        yield line(f"schema: {SCHEMA}", "the kind of this file; spaces/README.md of skipsearch has every key")

    def _model(self) -> Iterator[str]:
        yield "model:"
        yield line(f"  id: {flow(self.spec.id)}", "a hub id, or a folder (a relative one is relative to this file)")
        if self.spec.revision is not None:
            yield line(f"  revision: {flow(self.spec.revision)}", "a branch, tag or commit on the hub")
        yield line(f"  dtype: {self.spec.dtype}", "of the weights; auto is the dtype they were saved in")
        if self.spec.trust_remote_code:
            yield line("  trust_remote_code: true", "run code that comes with the model")

    def _layers(self) -> Iterator[str]:
        yield "layers:"
        for rule in self.rules:
            if not rule.keys:
                yield line(f"  - {{range: {rule.range}, choices: [keep]}}", self._why_kept(rule))
                continue
            where = "each of these layers" if rule.last > rule.first else "this layer"
            yield line(f"  - range: {rule.range}", f"each key below is a variable of its own in {where}")
            # A choice that is allowed with others alone cannot be a key: the sublayers then have choices by name.
            named_choices = "skip_layer" in rule.keys
            if named_choices:
                names = ["keep", *(f"skip_{key}" for key in SUBLAYERS if key in rule.keys), "skip_layer"]
                yield line(f"    choices: [{', '.join(names)}]", "keep: as it is; skip_layer: neither sublayer runs")
            for key in LINES:
                if key in rule.keys and not (named_choices and key in SUBLAYERS):
                    yield line(f"    {key}: {LINES[key][0]}", LINES[key][1])
            for key in rule.optional:
                yield line(f"    # {OPTIONAL_LINES[key][0]}", OPTIONAL_LINES[key][1])
        yield from self._left_out()

    def _why_kept(self, rule: Rule) -> str:
        if rule.first:
            return "these layers allow no choice"
        what = "they carry the image into the text" if self.found.selections else "all others build on it"
        return f"the first {'layers stay' if rule.last else 'layer stays'}: {what}"

    def _left_out(self) -> Iterator[str]:
        total = self.found.num_layers
        further = [key for key in FURTHER if key in self.found.further and len(self.found.further[key].layers) == total]
        if further:
            yield remark(f"Every layer also allows, though this space does not offer it: {'; '.join(further)}.")
        for key, support in {**self.found.offered, **self.found.optional, **self.found.further}.items():
            if support.reason:
                where = f"in {total - len(support.layers)} of {total} layers" if support.layers else "in any layer"
                yield remark(f"Not {named(key)} {where}: {support.reason}.")
        if self.found.no_images:
            yield remark(f"No token_ratio, no `tokens: image`: {self.found.no_images}.")

    def _images(self) -> Iterator[str]:
        if not self.found.selections:
            return
        total = self.found.num_layers
        if len(self.found.offered["token_ratio"].layers) == total >= SCHEDULED_DEPTH:
            yield line("schedules:", "patterns over all layers; a policy takes one or none")
            starts = flow(sorted({2, total // 4, total // 2}))
            yield "  # p-MoD: the share of the image tokens falls along half a cosine"
            yield "  - {shifted_cosine: {ratio: [0.3, 0.5, 0.7], max: 0.85, min: 0.15}}"
            if "once" in self.found.selections:
                yield "  # FastV: a share of them from one layer on"
                yield f"  - {{fastv: {{layer: {starts}, token_ratio: [0.5, 0.25]}}}}"
                yield "  # PyramidDrop: a share of them more leaves after each quarter of the depth"
                yield "  - {pyramid_drop: {token_ratio: [0.7, 0.5]}}"
            yield ""
        yield "token_selection:"
        yield line("  score: attention", "ranks image tokens by the attention that the last prompt token pays them")
        yield line(f"  reselect: {flow(self.found.selections)}", "each_layer: a token may come back; once: it may not")

    def _evaluate(self) -> Iterator[str]:
        own, image = bool(self.wishes.tasks), self.takes_images
        search, report = IMAGE_LIMITS if image else TEXT_LIMITS
        limit = self.wishes.limit
        yield "evaluate:"
        yield "  accuracy:"
        yield line(f"    tasks: {flow(self.tasks)}", "tasks of lm-eval, by name or as files")
        if not own and not image:
            yield line("    metric: acc", "lm-eval's name of the score")
        if self.has_chat_template and image:
            yield line("    apply_chat_template: true", "puts prompts into the model's chat template")
        if own and limit is None:
            yield "    # All examples: half of them guide the search, half report. search: {limit: 100} takes fewer."
        else:
            yield line(f"    search: {{limit: {limit or search}}}", "the first examples of each task guide the search")
            yield line(f"    report: {{limit: {5 * limit if limit else report}}}", "the next ones report the front")
        yield line(f"    batch_size: {8 if image else 16}", "examples at a time; more is faster where memory allows")
        yield line("  flops:", "counted on the work that ran")
        yield line("  latency: {batch_size: 1, new_tokens: 32}", "wall clock, in turns with the dense model")
        yield line("  memory:", "the size of the key-value cache after the prompt")
        for name in self._further_evaluators():
            yield line(f"  {name}:", "for an objective below")

    def _further_evaluators(self) -> list[str]:
        known = {metric: name for name in available() for metric in evaluator_class(name).metrics}
        return [name for name in dict.fromkeys(known[cost] for cost in self.costs) if name not in (QUALITY, *COSTS)]

    def _goals(self) -> Iterator[str]:
        metrics = declared_metrics()
        yield "objectives:"
        for name, direction in {QUALITY: "maximize", **dict.fromkeys(self.costs, "minimize")}.items():
            yield line(f"  {name}: {direction}", metrics[name].text.partition(";")[0].partition(". ")[0])
        yield "constraints:"
        bound = f'  accuracy: ">= {self.wishes.keep:g} * dense"'
        yield line(bound, "a policy that keeps less of the dense accuracy is left")
        yield "search:"
        yield line(f"  trials: {self.wishes.trials}", "policies to measure, the dense model among them")
        yield line("  seed: 0", "the same seed proposes the same policies")
        yield "workers:"
        yield line("  count: auto", "one for each GPU, or for each core where there is none")


def line(text: str, comment: str) -> str:
    """A line with its comment behind it, or above it where both are longer than a line."""
    whole = f"{text:<{COLUMN - 1}} # {comment}"
    indent = text[: len(text) - len(text.lstrip())]
    return whole if len(whole) <= 120 else f"{indent}# {comment}\n{text}"


def remark(text: str, indent: str = "  ") -> str:
    """A comment of as many lines as it needs."""
    return "\n".join(textwrap.wrap(text, 118, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}#   "))


def flow(value: Any) -> str:
    """A value as YAML on one line."""
    whole = yaml.safe_dump([list(value) if isinstance(value, tuple) else value], default_flow_style=True, width=10**6)
    return whole.strip()[1:-1]


def named(key: str) -> str:
    """A key of `OFFERED` or `FURTHER` as a space has it."""
    values: Mapping[str, str] = {"attention": "attention: skip alone", "ffn": "ffn: skip", "wiring": "wiring: parallel"}
    return f"`{values.get(key, key)}`" if key in OFFERED else f"`{key}`"
