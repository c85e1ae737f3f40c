"""The pictures of kept patches in a report, from a made-up study."""

import random
import re
from dataclasses import replace

import pytest
from made_studies import study, without_library

from skipsearch.evaluators.base import Measurement
from skipsearch.evaluators.patches.kept_patches import NO_GRID, runs
from skipsearch.search.analysis.study_record import policy_files
from skipsearch.search.report.html.kept_patches import kept_patches, outline
from skipsearch.search.report.html.page import page

ROWS, COLUMNS = 4, 6
PIXEL = "data:image/jpeg;base64,AAAA"


def with_patches(**dense_detail):
    """A study whose front keeps random patches of two pictures, and the flags of each by trial, picture and layer."""
    record, draw, flags = study(), random.Random(0), {}
    shown = {"task": "t", "text": "How <many>?", "grid": [ROWS, COLUMNS], "image": PIXEL}
    measured = {0: Measurement(1.0, 2, detail=dense_detail or {"pictures": [shown, shown]})}
    for number in policy_files(record):
        flags[number] = [{layer: [draw.random() < 0.5 for _ in range(ROWS * COLUMNS)] for layer in (10, 9)}
                         for _ in range(2)]  # fmt: skip
        kept = [{str(layer): runs(one) for layer, one in example.items()} for example in flags[number]]
        measured[number] = Measurement(0.5, 2, detail={"kept": kept})
    trials = [replace(trial, patches={"kept_patches": measured[trial.number]} if trial.number in measured else {})
              for trial in record.trials]  # fmt: skip
    return replace(record, trials=tuple(trials)), flags


def covered(path):
    """The patches inside the rectangles of an SVG path."""
    found = set()
    for left, row, wide in re.findall(r"M(\d+) (\d+)h(\d+)v1h-\d+z", path):
        found |= {int(row) * COLUMNS + column for column in range(int(left), int(left) + int(wide))}
    assert re.sub(r"M\d+ \d+h\d+v1h-\d+z", "", path) == ""
    return found


def test_what_a_layer_leaves_out_is_dimmed():
    record, flags = with_patches()
    section = kept_patches(record)
    assert [row.trial for row in section.rows] == [*policy_files(record)]
    for row in section.rows:
        for picture, drawings in enumerate(row.drawings):
            assert [one.layer for one in drawings] == [9, 10]
            for one in drawings:
                expected = flags[row.trial][picture][one.layer]
                assert covered(one.outline) == {place for place, kept in enumerate(expected) if not kept}
                assert one.kept == sum(expected)


def test_a_rectangle_ends_with_its_row():
    assert outline(iter([(4, 13)]), COLUMNS) == "M4 0h2v1h-2zM0 1h6v1h-6zM0 2h1v1h-1z"


def test_each_picture_is_in_the_page_once_and_nothing_is_fetched():
    record, flags = with_patches()
    text = without_library(page(record))
    assert text.count(PIXEL) == 2
    assert text.count('href="#picture-0"') == 1 + 2 * len(flags)
    number = [*flags][0]
    assert f"layer 9 processes {sum(flags[number][0][9])} of 24 patches" in text
    assert "How &lt;many&gt;?" in text and "How <many>?" not in text


@pytest.mark.parametrize("shown, detail", [(False, None), (True, {"note": NO_GRID})])
def test_a_model_without_a_grid_and_a_front_without_ratios(shown, detail):
    record, _ = with_patches(**detail) if detail else (study(), None)
    text = without_library(page(record))
    assert ("What the policies see" in text) == shown
    assert (NO_GRID.replace("'", "&#39;") in text) == shown
