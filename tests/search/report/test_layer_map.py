"""The layer map says the same with and without colour, at any width."""

import io
import re
from importlib.resources import files

import pytest
from rich.console import Console

from skipsearch.policies.choice import CHOICES, KEEP, LayerChoice, WidthSelection
from skipsearch.policies.metadata import Measured, ModelRef, Provenance
from skipsearch.policies.policy import Policy
from skipsearch.policies.scores.token_selection import TokenSelection
from skipsearch.search.report.cells import cell, cells
from skipsearch.search.report.layer_map import COLOURS, describe, layer_map
from skipsearch.search.space.units import amount, phrase, signed_points

POLICY = Policy.of(
    [
        KEEP,
        CHOICES["skip_attention"],
        CHOICES["skip_ffn"],
        CHOICES["skip_layer"],
        CHOICES["parallel"],
        LayerChoice(token_ratio=0.5),
        LayerChoice(ffn="skip", token_ratio=0.25),
        LayerChoice(token_ratio=0.0),
    ]
)
SCOPED = Policy.of(
    [
        LayerChoice(ffn="skip", phase="decode"),
        LayerChoice(token_ratio=0.5),
        LayerChoice(attention="skip", ffn="skip", phase="prefill", tokens="text"),
        LayerChoice(wiring="parallel", norm="shared"),
        LayerChoice(wiring="parallel", tokens="image", token_ratio=0.25),
        CHOICES["skip_layer"],
        KEEP,
    ],
    TokenSelection(reselect="once"),
)
MEASURED = POLICY.model_copy(
    update={
        "model": ModelRef(id="some/model", num_layers=8),
        "provenance": Provenance(study="digits", trial=41),
        "measured": {
            "accuracy": Measured(value=0.612, dense=0.62, stderr=0.011, n=2000, split="report"),
            "prefill_flops": Measured(value=5.1e12, dense=8.4e12),
            "ttft_ms": Measured(value=80.0, dense=100.0, iqr=2.5, n=20),
        },
    }
)


def drawn(policy: Policy, layers: int, width: int = 80, colour: bool = False, encoding: str = "utf-8") -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=stream, width=width, force_terminal=colour, color_system="truecolor" if colour else None)
    console.print(layer_map(policy, layers))
    stream.seek(0)
    return stream.read()


def row(text: str, label: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(label))
    return list(line[11::2])


def test_rows_say_every_choice() -> None:
    text = drawn(POLICY, 8)
    assert row(text, "attention") == ["■", "×", "■", "×", "║", "■", "■", "■"]
    assert row(text, "ffn") == ["■", "■", "×", "×", "║", "■", "×", "■"]
    assert row(text, "tokens") == ["·", "·", "·", " ", "·", "▄", "▂", "0"]


def test_a_row_says_which_layers_form_a_pair() -> None:
    policy = Policy.of([KEEP, LayerChoice(wiring="pair", ffn="skip"), KEEP, LayerChoice(wiring="pair"), KEEP])
    text = drawn(policy, 5)
    assert row(text, "pair") == [" ", "┌", "┐", "┌", "┐"] and row(text, "ffn")[1] == "×"
    assert "┌ reads the same as the layer after it (pair): 2 layers" in text
    assert describe(policy) == ["1: skip_ffn, pair", "3: pair"]
    assert row(drawn(policy, 5, encoding="ascii"), "pair") == [" ", "(", ")", "(", ")"]


def test_a_row_says_how_far_image_tokens_see() -> None:
    policy = Policy.of([KEEP, LayerChoice(window=2, ffn="skip", tokens="image"), LayerChoice(window=12)])
    text = drawn(policy, 3)
    assert row(text, "window") == ["·", "2", "+"] and "2 window 2: 1 layer" in text and "+ window 12: 1 layer" in text
    assert describe(policy) == ["1: skip_ffn (image) + window 2", "2: window 12"]


def test_rows_say_when_and_for_whom_a_choice_holds() -> None:
    text = drawn(SCOPED, 7)
    assert row(text, "attention") == ["■", "■", "×", "╫", "║", "×", "■"]
    assert row(text, "phase")[:3] == ["d", " ", "p"]
    assert row(text, "for")[:5] == [" ", " ", "t", " ", "i"]
    for line in (
        "╫ parallel, shared norm (both rows): 1 layer",
        "p in prefill only: 1 layer",
        "d in decode only: 1 layer",
        "i for image tokens only: 1 layer",
        "t for text tokens only: 1 layer",
    ):
        assert line in text
    assert "phase" not in drawn(POLICY, 8) and "only" not in drawn(POLICY, 8)


def test_rows_name_queries_keys_and_what_the_other_tokens_run() -> None:
    policy = Policy.of(
        [
            CHOICES["freeze_image"],
            LayerChoice(attention="queries_only", phase="decode"),
            LayerChoice(token_ratio=0.5, rest="attention", evict=True),
            LayerChoice(token_ratio=0.5, phase="decode"),
            LayerChoice(token_ratio=0.25, rest="keys_only"),
        ]
    )
    text = drawn(policy, 5)
    assert row(text, "attention") == ["○", "△", "■", "■", "■"]
    assert row(text, "ffn") == ["×", "■", "■", "■", "■"]
    assert row(text, "phase") == [" ", "d", " ", "d", " "]
    rests = [list(line[11::2]) for line in text.splitlines() if line.startswith(("rest", "evict"))]
    assert ["".join(rest).rstrip() for rest in rests] == ["    k", "  a", "  ee"]
    for line in (
        "○ keys_only: tokens are seen without asking: 1 layer",
        "△ queries_only: tokens ask without being seen: 1 layer",
        "e image tokens beyond the ratio leave the cache after the prompt: 2 layers",
    ):
        assert line in text
    assert row(drawn(policy, 5, encoding="ascii"), "attention") == list("o^###")


def test_a_row_says_which_share_of_the_channels_runs() -> None:
    choices = [LayerChoice(ffn_ratio=0.5, tokens="image"), KEEP, CHOICES["skip_ffn"], LayerChoice(ffn_ratio=0.05)]
    policy = Policy.of(choices, width=WidthSelection(ranking="first"))
    text = drawn(policy, 4)
    assert row(text, "channels") == ["▄", "·", " ", "▁"]
    assert row(text, "for")[0] == "i"
    assert "▄ ffn_ratio 0.5: 1 layer" in text and "· all channels; ranked by first" in text
    assert describe(policy) == ["0: ffn_ratio 0.5 (image)", "2: skip_ffn", "3: ffn_ratio 0.05", "ranking first"]
    assert "channels" not in drawn(POLICY, 8)
    heads = Policy.of([KEEP, LayerChoice(head_ratio=0.5, ffn_ratio=0.25), CHOICES["skip_attention"]])
    text = drawn(heads, 3)
    assert (row(text, "heads"), row(text, "channels")) == (["·", "▄", " "], ["·", "▂", "·"])
    assert "▄ head_ratio 0.5: 1 layer" in text and "· all channels and heads; ranked by weights" in text


def test_what_is_left_out_once_is_drawn_in_the_later_layers() -> None:
    text = drawn(SCOPED, 7)
    assert row(text, "tokens") == ["·", "▄", "→", "→", "▂", " ", "→"]
    assert "reselect once" in text and "→ only the image tokens that earlier layers left (once)" in text
    assert [one.left for one in cells(SCOPED, 7)] == [None, None, 0.5, 0.5, None, 0.25, 0.25]
    assert "→" not in drawn(POLICY, 8)
    assert row(drawn(SCOPED, 7, encoding="ascii"), "tokens") == list("-4>>2 >")


def test_the_legend_counts_layers_and_names_only_what_occurs() -> None:
    text = drawn(POLICY, 8)
    for line in (
        "skip_ffn: 2 layers",
        "skip_attention: 1 layer\n",
        "parallel (both rows): 1 layer",
        "token_ratio 0.5: 1",
    ):
        assert line in text
    plain = drawn(Policy.of([KEEP, CHOICES["skip_ffn"]]), 2)
    assert "tokens" not in plain
    assert "parallel" not in plain
    assert "every layer runs as in the dense model" in drawn(Policy(), 4)


def test_figures_stand_against_dense() -> None:
    text = " ".join(drawn(MEASURED, 8, width=100).split())
    assert "some/model" in text
    assert "study digits · trial 41" in text
    assert "accuracy 61.2 % ± 1.1 −0.8 points vs dense 62.0 % n 2000 report" in text
    assert "prefill_flops 5.10 TFLOPs 60.7 % of dense 8.40 TFLOPs" in text
    assert "ttft_ms 80.0 ms (IQR 2.50) 80.0 % of dense 100 ms n 20" in text


@pytest.mark.parametrize("width", [40, 80, 200])
def test_eighty_layers_wrap_without_losing_one(width: int) -> None:
    policy = Policy.of([CHOICES["skip_ffn"] if index % 7 == 3 else KEEP for index in range(80)])
    text = drawn(policy, 80, width)
    lines = text.splitlines()
    assert all(len(line) <= width for line in lines)
    symbols = "".join(line[11:].replace(" ", "") for line in lines if line.startswith("ffn"))
    assert symbols == "".join("×" if index % 7 == 3 else "■" for index in range(80))


def test_colour_adds_nothing_but_colour() -> None:
    coloured = drawn(POLICY, 8, colour=True)
    assert "\x1b[" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == drawn(POLICY, 8)


def test_a_pipe_without_unicode_still_works() -> None:
    text = drawn(MEASURED, 8, encoding="ascii")
    assert row(text, "attention") == list("#x#x=###")
    assert row(text, "tokens")[5:] == list("420")


def test_the_page_uses_the_same_colours() -> None:
    template = (files("skipsearch.search.report.html") / "style.css").read_text(encoding="utf-8")
    for name, colour in COLOURS.items():
        assert f"--{name}: {colour.lower()};" in template


def test_describe_joins_equal_neighbours() -> None:
    ratio = LayerChoice(token_ratio=0.5)
    policy = Policy.of([KEEP, CHOICES["skip_ffn"], KEEP, ratio, ratio, ratio, CHOICES["skip_ffn"]])
    assert describe(policy) == ["1: skip_ffn", "3-5: token_ratio 0.5", "6: skip_ffn"]
    assert describe(Policy()) == []
    assert describe(SCOPED)[:3] == ["0: skip_ffn (decode)", "1: token_ratio 0.5", "2: skip_layer (prefill, text)"]
    assert describe(SCOPED)[-1] == "reselect once"


def test_cell_of_a_combination() -> None:
    both = cell(LayerChoice(wiring="parallel", token_ratio=0.5))
    assert (both.attention, both.ffn, both.ratio) == ("parallel", "parallel", 0.5)
    assert cell(LayerChoice(attention="skip", ffn="skip", token_ratio=0.5)).ratio is None


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.6124, "fraction", "61.2 %"),
        (5.1e12, "flops", "5.10 TFLOPs"),
        (999.9e9, "flops", "1000 GFLOPs"),
        (0.0, "flops", "0.00 FLOPs"),
        (123.44, "ms", "123 ms"),
        (0.0123, "ms", "0.0123 ms"),
        (2.0**20 * 1.5, "bytes", "1.50 MiB"),
        (float("nan"), "ms", "not a number"),
    ],
)
def test_amounts(value: float, unit: str, text: str) -> None:
    assert amount(value, unit) == text


def test_words() -> None:
    assert [phrase(name) for name in ("prefill_flops", "ttft_ms", "kv_cache_bytes")] == [
        "prefill FLOPs",
        "TTFT",
        "KV cache",
    ]
    assert signed_points(-0.008) == "−0.8 points"
