"""The report's pictures of the patches that policies keep, as values for `kept_patches.html`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...analysis.study_record import StudyRecord, policy_files

NAME = "kept_patches"


@dataclass(frozen=True)
class Picture:
    """One example.

    Attributes:
        image: The picture as a data URI.
        text: The question about it.
        task: The task that it is from.
        rows: Rows of patches.
        columns: Columns of patches.
    """

    image: str
    text: str
    task: str
    rows: int
    columns: int


@dataclass(frozen=True)
class Drawing:
    """The patches of one picture that one layer processes.

    Attributes:
        picture: The number of the picture.
        layer: The layer.
        kept: How many of its patches the layer processes.
        outline: SVG path around the patches that it leaves out, in units of patches.
    """

    picture: int
    layer: int
    kept: int
    outline: str


@dataclass(frozen=True)
class PatchRow:
    """One policy of the front; its drawings are grouped by picture."""

    trial: int
    file: str
    drawings: list[list[Drawing]]


@dataclass(frozen=True)
class KeptPatches:
    """The whole section; `note` says why nothing is drawn."""

    pictures: list[Picture]
    rows: list[PatchRow]
    note: str = ""


def kept_patches(record: StudyRecord) -> KeptPatches | None:
    """The pictures and what each policy keeps of them; None where no policy of the front has token ratios."""
    dense = record.dense.patches.get(NAME)
    if dense is None:
        return None
    if "note" in dense.detail:
        return KeptPatches([], [], dense.detail["note"])
    pictures = [
        Picture(one["image"], one["text"], one["task"], *one["grid"]) for one in dense.detail.get("pictures", [])
    ]
    rows = []
    for number, file in policy_files(record).items():
        entry = record.trial(number).patches.get(NAME)
        if entry is not None and len(entry.detail.get("kept", ())) == len(pictures):
            drawings = [drawn(place, picture, entry.detail["kept"][place]) for place, picture in enumerate(pictures)]
            rows.append(PatchRow(number, file, drawings))
    return KeptPatches(pictures, rows) if rows else None


def drawn(place: int, picture: Picture, kept: Mapping[str, Any]) -> list[Drawing]:
    """One picture under one policy, a drawing for each layer.

    Args:
        place: The number of the picture.
        picture: The picture.
        kept: By layer, the runs of patches that it processes.
    """
    size = picture.rows * picture.columns
    return [
        Drawing(place, int(layer), sum(length for _, length in runs), outline(gaps(runs, size), picture.columns))
        for layer, runs in sorted(kept.items(), key=lambda entry: int(entry[0]))
    ]


def gaps(runs: Sequence[Sequence[int]], size: int) -> Iterator[tuple[int, int]]:
    """The start and the end of what lies between runs, in a sequence of `size`."""
    before = 0
    for start, length in [*runs, (size, 0)]:
        if start > before:
            yield before, start
        before = start + length


def outline(spans: Iterator[tuple[int, int]], columns: int) -> str:
    """SVG path of rectangles, one for each part of a span in one row of patches."""
    parts = []
    for start, end in spans:
        for row in range(start // columns, (end - 1) // columns + 1):
            left, right = max(start, row * columns), min(end, (row + 1) * columns)
            parts.append(f"M{left - row * columns} {row}h{right - left}v1h{left - right}z")
    return "".join(parts)
