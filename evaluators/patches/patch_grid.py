"""Where the image tokens of a prompt lie in its picture, and the picture as the model sees it."""

import base64
import io
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from ..subject import Subject

# Families whose image tokens are a square of patches, row by row. Others may resample the patches (Idefics2), cut the
# picture into tiles (LLaVA-NeXT, InternVL) or order the patches in another way, so they are not guessed.
SQUARE = frozenset({"llava", "vipllava", "gemma3", "paligemma"})
MERGE_KEYS = ("spatial_merge_size", "merge_size")
LONGEST_EDGE, QUALITY = 336, 85  # of the pictures that the report shows, in pixels and as JPEG's quality


def patch_grid(subject: "Subject", inputs: "Mapping[str, Tensor]", num_tokens: int) -> tuple[int, int] | None:
    """Rows and columns of the image tokens of a prompt with one picture; None where they are no known grid.

    Args:
        subject: The model.
        inputs: The prompt, batch 1.
        num_tokens: The number of its image tokens.
    """
    grid = inputs.get("image_grid_thw")
    if grid is not None:
        return merged_grid(subject.model.config, grid.tolist(), num_tokens)
    edge, pixels = math.isqrt(num_tokens), inputs.get("pixel_values")
    is_square = pixels is not None and pixels.dim() == 4 and len(pixels) == 1 and pixels.shape[2] == pixels.shape[3]
    known = subject.model.config.model_type in SQUARE
    return (edge, edge) if known and is_square and num_tokens and edge * edge == num_tokens else None


def merged_grid(config: Any, grids: list[list[int]], num_tokens: int) -> tuple[int, int] | None:
    """Rows and columns of image tokens that each stand for some patches of `image_grid_thw`, as in Qwen2-VL."""
    vision = getattr(config, "vision_config", None)
    merge = next((int(getattr(vision, key)) for key in MERGE_KEYS if hasattr(vision, key)), 0)
    if len(grids) != 1 or not merge or grids[0][0] != 1:
        return None
    rows, columns = (size // merge for size in grids[0][1:])
    return (rows, columns) if rows * columns == num_tokens else None


def seen_picture(subject: "Subject", inputs: "Mapping[str, Tensor]", original: "Image") -> "Image":
    """The picture that the image tokens cover: cropped and padded as the model's processor does it.

    A processor with a grid of its own (`image_grid_thw`) keeps the whole picture.
    """
    from PIL import Image

    if "image_grid_thw" in inputs:
        return original.convert("RGB")
    processor: Any = subject.processor.image_processor
    pixels = inputs["pixel_values"][0].float().cpu()
    if getattr(processor, "do_normalize", True):
        mean, std = (pixels.new_tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
        pixels = pixels * std + mean
    return Image.fromarray((pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())


def data_uri(picture: "Image") -> str:
    """A picture as the text of a JPEG file that HTML can hold."""
    picture = picture.copy()
    picture.thumbnail((LONGEST_EDGE, LONGEST_EDGE))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
