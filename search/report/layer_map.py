"""How a policy is drawn: its colours and symbols, the layer map in the terminal, and its description in words."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from ...policies.metadata import Measured
from ...policies.policy import Policy
from ...policies.quantized.kinds import NONE
from ...policies.wording import escape_invisible
from ..space.units import three_digits, unit_of, versus_dense, with_error
from .cells import Cell, cells

# The palette of Okabe and Ito, which colour-blind readers can distinguish. No choice is shown by its colour alone.
COLOURS = {
    "skip_attention": "#0072B2",
    "skip_ffn": "#E69F00",
    "skip_layer": "#D55E00",
    "parallel": "#CC79A7",
    "parallel_shared": "#CC79A7",
    "keys_only": "#56B4E9",
    "queries_only": "#F0E442",
    "adapter": "#56B4E9",
    "token_ratio": "#009E73",
    "ffn_ratio": "#8C6D31",
    "head_ratio": "#882255",
}
RUNS, SKIPPED, PARALLEL, SHARED, ALL_TOKENS, LEFT, EIGHTHS = "■", "×", "║", "╫", "·", "→", "▁▂▃▄▅▆▇█"
KEYS, QUERIES, ADAPTER = "○", "△", "◇"
MEANING = {
    "keep": (RUNS, "runs"),
    "skip_attention": (SKIPPED, "skip_attention"),
    "skip_ffn": (SKIPPED, "skip_ffn"),
    "skip_layer": (SKIPPED, "skip_layer (both rows)"),
    "parallel": (PARALLEL, "parallel (both rows)"),
    "parallel_shared": (SHARED, "parallel, shared norm (both rows)"),
    "keys_only": (KEYS, "keys_only: tokens are seen without asking"),
    "queries_only": (QUERIES, "queries_only: tokens ask without being seen"),
    "adapter": (ADAPTER, "adapter in place of the attention"),
}
# Letters for a choice that is limited to one phase or to one kind of token.
SCOPES = {"p": "in prefill only", "d": "in decode only", "i": "for image tokens only", "t": "for text tokens only"}
# Letters for what the image tokens do that a ratio leaves out.
RESTS = {
    "k": "image tokens beyond the ratio are seen without asking",
    "a": "image tokens beyond the ratio have the attention without the FFN",
    "f": "image tokens beyond the ratio have the FFN without the attention",
    "e": "image tokens beyond the ratio leave the cache after the prompt",
}
# Signs for the two layers of a pair.
PAIRS = {"┌": "reads the same as the layer after it (pair)", "┐": "reads what enters the layer before it (pair)"}
ASCII = str.maketrans("■×║╫○△◇·→┌┐±−▁▂▃▄▅▆▇█", "#x=%o^a->()~-12345678")
LABEL_WIDTH = 11


def describe(policy: Policy) -> list[str]:
    """What differs from dense, one entry per run of equal layers, such as `3: skip_ffn` or `7-9: token_ratio 0.5`."""
    changed = sorted((index, choice.label) for index, choice in policy.canonical().layers.items())
    runs = groupby(enumerate(changed), key=lambda item: (item[1][0] - item[0], item[1][1]))
    entries = []
    for (_, label), run in runs:
        layers = [index for _, (index, _) in run]
        entries.append(f"{layers[0]}: {label}" if len(layers) == 1 else f"{layers[0]}-{layers[-1]}: {label}")
    policy = policy.canonical()
    if policy.model.quantization != NONE:
        entries.append(f"{policy.model.quantization} weights")
    selection = policy.token_selection.model_dump(exclude_defaults=True)
    selection |= policy.width_selection.model_dump(include={"ranking"}, exclude_defaults=True)
    return entries + [f"{key} {value}" for key, value in selection.items()]


def layer_map(policy: Policy, num_layers: int) -> "LayerMap":
    """A policy for a terminal or a pipe: its measurements, and what every layer does."""
    return LayerMap(policy.canonical(), num_layers)


@dataclass(frozen=True)
class LayerMap:
    """A rich renderable of a policy that fits any width and is complete without colour."""

    policy: Policy
    num_layers: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw header, measurements, rows of layers, and legend."""
        room = max(5, (options.max_width - LABEL_WIDTH) // 2)
        for line in [
            *self._header(),
            *self._measurements(options.max_width),
            Text(),
            *self._bands(room),
            *self._legend(),
        ]:
            if options.ascii_only:
                line.plain = line.plain.translate(ASCII)
            yield line

    def _header(self) -> Iterator[Text]:
        model, origin = self.policy.model, self.policy.provenance
        yield Text(escape_invisible(model.id or "any model"), style="bold")
        facts = [f"{len(self.policy.layers)} of {_layers(self.num_layers)} changed"]
        facts += [f"{model.quantization} weights"] if model.quantization != NONE else []
        facts += [escape_invisible(f"study {origin.study}")] if origin.study is not None else []
        facts += [f"trial {origin.trial}"] if origin.trial is not None else []
        yield Text("  " + " · ".join(facts), style="dim")

    def _measurements(self, max_width: int) -> Iterator[Text]:
        """One line per measurement, in columns; where these are too wide, not aligned, or one part below the other."""
        rows = [_measurement_row(name, entry) for name, entry in self.policy.measured.items()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        if sum(widths) + 2 * len(widths) - 2 > max_width:
            lines = ["  ".join(filter(None, row)) for row in rows]
            fits = max(map(len, lines)) <= max_width
            rows = [[line] for line in lines] if fits else [["\n      ".join(filter(None, row))] for row in rows]
            widths = [0]
        for row in rows:
            yield Text("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())

    def _bands(self, room: int) -> Iterator[Text]:
        """The rows, cut into bands of equal length where the layers do not fit into one line."""
        layers = cells(self.policy, self.num_layers)
        bands = math.ceil(len(layers) / room)
        length = min(room, 5 * math.ceil(len(layers) / bands / 5)) if bands > 1 else len(layers)
        for start in range(0, len(layers), length):
            band = layers[start : start + length]
            ticks = "".join(f"{index:<10}" for index in range(start, start + len(band), 5))
            yield Text("layer".ljust(LABEL_WIDTH) + ticks.rstrip(), style="dim")
            yield _row("attention", [_symbol(c.attention) for c in band])
            yield _row("ffn", [_symbol(c.ffn) for c in band])
            if any(c.channels is not None for c in layers):
                yield _row("channels", [_channel_symbol(c) for c in band])
            if any(c.heads is not None for c in layers):
                yield _row("heads", [_head_symbol(c) for c in band])
            if any(c.pair for c in layers):
                yield _row("pair", [_letter(c.pair) for c in band])
            if any(c.phase for c in layers):
                yield _row("phase", [_letter(c.phase) for c in band])
            if any(c.tokens for c in layers):
                yield _row("for", [_letter(c.tokens) for c in band])
            if any(c.ratio is not None for c in layers):
                yield _row("tokens", [_token_symbol(c) for c in band])
            if any(c.window is not None for c in layers):
                yield _row("window", [_window_symbol(c) for c in band])
            for letter in RESTS:
                if any(letter in c.rest for c in layers):
                    label = "evict" if letter == "e" else "rest"
                    yield _row(label, [_letter(letter if letter in c.rest else "") for c in band])
            yield Text()

    def _legend(self) -> Iterator[Text]:
        """What occurs in the policy, with the number of layers that it occurs in."""
        layers = cells(self.policy, self.num_layers)
        used = Counter(kind for c in layers for kind in {c.attention, c.ffn})
        for kind, (_, meaning) in MEANING.items():
            if used[kind] and kind != "keep":
                yield Text("  ").append_text(_symbol(kind)).append(f" {meaning}: {_layers(used[kind])}")
        pairs = Counter(c.pair for c in layers)
        for sign, meaning in PAIRS.items():
            if pairs[sign]:
                yield Text("  ").append_text(_letter(sign)).append(f" {meaning}: {_layers(pairs[sign])}")
        scopes = Counter(letter for c in layers for letter in (c.phase, c.tokens))
        for letter, meaning in SCOPES.items():
            if scopes[letter]:
                yield Text("  ").append_text(_letter(letter)).append(f" {meaning}: {_layers(scopes[letter])}")
        rests = Counter(letter for c in layers for letter in c.rest)
        for letter, meaning in RESTS.items():
            if rests[letter]:
                yield Text("  ").append_text(_letter(letter)).append(f" {meaning}: {_layers(rests[letter])}")
        ratios = Counter(c.ratio for c in layers if c.ratio is not None)
        for ratio in sorted(ratios, reverse=True):
            symbol = _token_symbol(Cell("keep", "keep", ratio))
            yield Text("  ").append_text(symbol).append(f" token_ratio {ratio:g}: {_layers(ratios[ratio])}")
        if ratios:
            selection = self.policy.token_selection
            yield Text(
                f"  {ALL_TOKENS} all image tokens; ranked by {selection.label}, reselect {selection.reselect}", "dim"
            )
        windows = Counter(c.window for c in layers if c.window is not None)
        for window in sorted(windows):
            symbol = _window_symbol(Cell("keep", "keep", window=window))
            yield Text("  ").append_text(symbol).append(f" window {window}: {_layers(windows[window])}")
        widths = list(self._widths(layers))
        yield from widths
        if any(c.left is not None for c in layers):
            yield Text(f"  {LEFT} only the image tokens that earlier layers left (once)", "dim")
        if not used.keys() - {"keep"} and not ratios and not widths and not windows and not pairs.keys() - {""}:
            yield Text("  every layer runs as in the dense model", style="dim")

    def _widths(self, layers: list[Cell]) -> Iterator[Text]:
        """The shares of channels and of heads that occur."""
        channels = Counter(c.channels for c in layers if c.channels is not None)
        for share in sorted(channels, reverse=True):
            symbol = _channel_symbol(Cell("keep", "keep", channels=share))
            yield Text("  ").append_text(symbol).append(f" ffn_ratio {share:g}: {_layers(channels[share])}")
        heads = Counter(c.heads for c in layers if c.heads is not None)
        for share in sorted(heads, reverse=True):
            symbol = _head_symbol(Cell("keep", "keep", heads=share))
            yield Text("  ").append_text(symbol).append(f" head_ratio {share:g}: {_layers(heads[share])}")
        named = [name for name, counted in (("channels", channels), ("heads", heads)) if counted]
        if named:
            ranking = self.policy.width_selection.ranking
            yield Text(f"  {ALL_TOKENS} all {' and '.join(named)}; ranked by {ranking}", "dim")


def _layers(count: int) -> str:
    return f"{count} layer" + ("s" if count != 1 else "")


def _row(label: str, symbols: list[Text]) -> Text:
    line = Text(label.ljust(LABEL_WIDTH))
    for symbol in symbols:
        line.append_text(symbol).append(" ")
    return line


def _symbol(kind: str) -> Text:
    ink = "#ffffff" if kind == "skip_attention" else "#000000"  # This blue is dark, the other colours are light.
    return Text(MEANING[kind][0], style="dim" if kind == "keep" else f"bold {ink} on {COLOURS[kind]}")


def _letter(letter: str) -> Text:
    return Text(letter or " ", style="bold")


def _token_symbol(drawn: Cell) -> Text:
    if drawn.attention == "skip_layer" and not (drawn.phase or drawn.tokens):
        return Text(" ")
    if drawn.ratio is None:
        return Text(ALL_TOKENS if drawn.left is None else LEFT, style="dim")
    return Text(_level(drawn.ratio) if drawn.ratio else "0", style=f"bold {COLOURS['token_ratio']}")


def _window_symbol(drawn: Cell) -> Text:
    """The rows and columns as a digit; `+` for ten and more."""
    if drawn.window is None:
        return Text(ALL_TOKENS, style="dim")
    return Text(str(drawn.window) if drawn.window < 10 else "+", style=f"bold {COLOURS['token_ratio']}")


def _channel_symbol(drawn: Cell) -> Text:
    if drawn.channels is None:
        return Text(" " if drawn.ffn in ("skip_ffn", "skip_layer") else ALL_TOKENS, style="dim")
    return Text(_level(drawn.channels), style=f"bold {COLOURS['ffn_ratio']}")


def _head_symbol(drawn: Cell) -> Text:
    if drawn.heads is None:
        return Text(" " if drawn.attention in ("skip_attention", "skip_layer", "adapter") else ALL_TOKENS, style="dim")
    return Text(_level(drawn.heads), style=f"bold {COLOURS['head_ratio']}")


def _level(share: float) -> str:
    return EIGHTHS[max(0, math.floor(share * len(EIGHTHS)) - 1)]


def _measurement_row(name: str, entry: Measured) -> list[str]:
    unit = unit_of(name)
    spread = "" if entry.iqr is None else f" (IQR {three_digits(entry.iqr)})"
    basis = "predicted " if entry.n == 0 else f"n {entry.n} " if entry.n is not None and entry.n > 1 else ""
    value = entry.value if entry.modelled is None else entry.modelled
    change = "" if entry.dense is None else versus_dense(value, entry.dense, unit)
    return [
        "  " + escape_invisible(name),
        with_error(value, entry.stderr, unit) + spread,
        change,
        basis + (entry.split or ""),
    ]
