"""The rows and columns in which a model's processor lays out the tokens of an image."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import repeat
from typing import Any, Final, NamedTuple

from ..errors import ModelError


class Grid(NamedTuple):
    """A part of an image whose tokens follow each other row by row; a whole image, a tile, or a frame."""

    rows: int
    columns: int

    @property
    def tokens(self) -> int:
        """How many tokens it has."""
        return self.rows * self.columns


# From a model's configuration and inputs, the grids of all images, in order.
GridReader = Callable[[Any, Mapping[str, Any]], Iterator[Grid]]


def of_llava(config: Any, inputs: Mapping[str, Any]) -> Iterator[Grid]:
    """One square grid an image: the patches of a vision tower with a fixed picture size."""
    side = config.vision_config.image_size // config.vision_config.patch_size
    return repeat(Grid(side, side))


def of_internvl(config: Any, inputs: Mapping[str, Any]) -> Iterator[Grid]:
    """One grid a tile, whose sides are the patches of a tile times the ratio by which they are put together."""
    vision = config.vision_config
    sides = [
        int(size // patch * config.downsample_ratio)
        for size, patch in zip(vision.image_size, vision.patch_size, strict=True)
    ]
    return repeat(Grid(*sides))


def of_llava_next(config: Any, inputs: Mapping[str, Any]) -> Iterator[Grid]:
    """Two grids an image: the whole image in small, and its tiles together without padding.

    Each row of the second one ends with a token for the end of the line.
    """
    # Imported here, because the module is large.
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

    side = config.vision_config.image_size // config.vision_config.patch_size
    for height, width in given(inputs, "image_sizes"):
        shape = get_anyres_image_grid_shape(
            (height, width), config.image_grid_pinpoints, config.vision_config.image_size
        )
        yield Grid(side, side)
        unpadded = without_padding(Grid(shape[0] * side, shape[1] * side), height, width)
        yield Grid(unpadded.rows, unpadded.columns + 1)


def without_padding(grid: Grid, height: int, width: int) -> Grid:
    """The part of a grid of tiles that shows a picture of some size, as transformers' `unpad_image` cuts it."""
    if width / height > grid.columns / grid.rows:
        padding = (grid.rows - int(round(height * (grid.columns / width), 7))) // 2
        return Grid(grid.rows - 2 * padding, grid.columns)
    padding = (grid.columns - int(round(width * (grid.rows / height), 7))) // 2
    return Grid(grid.rows, grid.columns - 2 * padding)


def of_patch_grids(config: Any, inputs: Mapping[str, Any]) -> Iterator[Grid]:
    """One grid an image, or a frame: what `image_grid_thw` says, in patches, of which several are merged."""
    merge = config.vision_config.spatial_merge_size
    for frames, height, width in given(inputs, "image_grid_thw"):
        yield from repeat(Grid(height // merge, width // merge), frames)


# The inputs of models that say how large images are.
SIZES: Final = ("image_sizes", "image_grid_thw")
# By `model_type`.
READERS: Final[Mapping[str, GridReader]] = {
    "llava": of_llava,
    "internvl": of_internvl,
    "llava_next": of_llava_next,
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "glm4v", "glm4v_moe"), of_patch_grids),
    **dict.fromkeys(("qwen3_5", "qwen3_5_moe"), of_patch_grids),
}
# Vision towers of a fixed picture size, of which `llava` may have others.
FIXED: Final = ("clip_vision_model", "siglip_vision_model")


def grid_reader(config: Any) -> GridReader | None:
    """What reads the grids of a model's images; None where the layout of its image tokens is not known."""
    if config.model_type == "llava" and config.vision_config.model_type not in FIXED:
        return None
    return READERS.get(config.model_type)


def given(inputs: Mapping[str, Any], name: str) -> list[tuple[int, ...]]:
    """The sizes of all images, from an input of the model.

    Raises:
        ModelError: the input is missing.
    """
    sizes = inputs.get(name)
    if sizes is None:
        reason = (
            f"found no `{name}` among the inputs of the model, which says how the tokens of each image are laid out"
        )
        raise ModelError("a window needs the grid of the image tokens", [reason], f"call the model with `{name}`")
    rows: list[Sequence[int]] = sizes.tolist() if hasattr(sizes, "tolist") else list(sizes)
    return [tuple(int(number) for number in row) for row in rows]


def grids_by_row(config: Any, inputs: Mapping[str, Any], counts: list[int]) -> list[tuple[Grid, ...]]:
    """The grids of each row of a batch.

    Args:
        config: The model's configuration.
        inputs: The arguments that the model was called with.
        counts: How many image tokens each row has.

    Raises:
        ModelError: the layout is not known, or does not fit the number of image tokens.
    """
    reader = grid_reader(config)
    if reader is None or inputs.get("pixel_values_videos") is not None:
        kind = "videos" if reader is not None else f"a {config.model_type}"
        raise ModelError("a window needs the grid of the image tokens", [f"none is known for {kind}"])
    images = reader(config, inputs)
    rows: list[tuple[Grid, ...]] = []
    for count in counts:
        grids: list[Grid] = []
        while sum(grid.tokens for grid in grids) < count:
            found = next(images, None)
            if found is None or not found.tokens:
                raise misfit(counts, len(rows), grids)
            grids.append(found)
        if sum(grid.tokens for grid in grids) != count:
            raise misfit(counts, len(rows), grids)
        rows.append(tuple(grids))
    return rows


def misfit(counts: list[int], row: int, grids: list[Grid]) -> ModelError:
    """The error for a row whose image tokens are not those of whole grids."""
    shapes = ", ".join(f"{grid.rows} x {grid.columns}" for grid in grids[:8])
    return ModelError(
        "the image tokens of a prompt do not fit the grids of its images",
        [f"row {row} has {counts[row]} image tokens, its grids begin with {shapes}"],
        "leave `window` out of the policy, or pass whole images and what the processor says of their sizes",
    )
