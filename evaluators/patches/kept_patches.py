"""Which patches of a picture two layers keep under a policy, on a few examples, for the report."""

import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from ..base import Measurement, Metric, Options, Split
from ..statistics import on_device
from .patch_grid import data_uri, patch_grid, seen_picture

if TYPE_CHECKING:
    from torch import Tensor

    from ...policies.apply import PolicyHandle
    from ...policies.policy import Policy
    from ..answers import Request
    from ..examples import ExampleEvaluator
    from ..subject import Subject

EXAMPLES = 3
MAX_TEXT = 120  # characters of a question
NO_GRID = "This model's image tokens are no plain grid of patches of one picture, so they are not drawn."
NO_PICTURE = "No example of the search split has exactly one picture, so no patches are drawn."


class KeptPatchesEvaluator:
    """Records the image tokens that the ratios of the first and the last layer with one keep.

    A space cannot name it: the driver asks for it once a search has ended, for the policies of the front.

    Args:
        options: None.
        subject: The loaded model.
        examples: An evaluator whose search split has the examples.
    """

    name: ClassVar[str] = "kept_patches"
    options: ClassVar[type[Options]] = Options
    metrics: ClassVar[Mapping[str, Metric]] = {
        "kept_patches": Metric("fraction", "minimize", "share of the image tokens that the drawn layers keep")
    }
    cost: ClassVar[int] = 30
    exclusive: ClassVar[bool] = False
    splits: ClassVar[bool] = True

    def __init__(self, options: Options, subject: "Subject", examples: "ExampleEvaluator") -> None:
        self._subject, self._examples = subject, examples

    def measure(self, handle: "PolicyHandle", split: Split) -> dict[str, Measurement]:
        """Run the prompts of the examples once.

        Returns:
            The metric. Its `detail` has for dense the `pictures`, each with its question and grid; for other policies
            the image tokens that were `kept`, by example and layer, as runs of a start and a length; and a `note` where
            nothing can be drawn.
        """
        requests = self._examples.with_one_picture(EXAMPLES)
        if not requests:
            return {"kept_patches": Measurement(1.0, 0, detail={"note": NO_PICTURE})}
        layers = drawn_layers(handle.policy, len(handle.steps()))
        pictures, kept, shares = [], [], []
        for task, text, request in requests:
            inputs = self._examples.prompt_of(request)
            is_image = image_mask(handle, inputs)
            grid = patch_grid(self._subject, inputs, int(is_image.sum()))
            if grid is None:
                return {"kept_patches": Measurement(1.0, 0, detail={"note": NO_GRID})}
            masks = self._run(handle, inputs, layers)
            of_image = {layer: mask[0, is_image[0]].tolist() for layer, mask in masks.items()}
            kept.append({str(layer): runs(flags) for layer, flags in of_image.items()})
            shares += [sum(flags) / len(flags) for flags in of_image.values()]
            if handle.policy.is_dense:
                shown = seen_picture(self._subject, inputs, picture_of(request))
                pictures.append(
                    {
                        "task": task,
                        "text": textwrap.shorten(text, MAX_TEXT, placeholder=" …"),
                        "grid": grid,
                        "image": data_uri(shown),
                    }
                )
        detail = {"pictures": pictures} if pictures else {"kept": kept}
        return {"kept_patches": Measurement(sum(shares) / len(shares) if shares else 1.0, len(kept), detail=detail)}

    def _run(self, handle: "PolicyHandle", inputs: Mapping[str, Any], layers: list[int]) -> "dict[int, Tensor]":
        """Run one prompt; which tokens each of some layers kept, shape (1, tokens)."""
        if not layers:
            return {}
        with self._examples.under_policy(handle), kept_images(handle, layers) as masks:
            handle.model(**on_device(inputs, handle.model), use_cache=False)
        return masks


def drawn_layers(policy: "Policy", num_layers: int) -> list[int]:
    """The first and the last layer that leaves out image tokens of the prompt by a ratio; one where both are the same.

    Args:
        policy: The policy.
        num_layers: The number of the model's layers.
    """
    choices = enumerate(policy.choices(num_layers))
    found = [index for index, one in choices if one.ranks_images]
    return sorted({*found[:1], *found[-1:]})


def image_mask(handle: "PolicyHandle", inputs: "Mapping[str, Tensor]") -> "Tensor":
    """Which tokens of a prompt stand for image features, shape (1, tokens)."""
    import torch

    from ...policies.runtime.tokens import image_token_ids

    return torch.isin(inputs["input_ids"].cpu(), torch.tensor(image_token_ids(handle.model)))


@contextmanager
def kept_images(handle: "PolicyHandle", layers: list[int]) -> "Iterator[dict[int, Tensor]]":
    """Record the image tokens that the ratios of some layers keep while the context is open; the last run counts."""
    from ...policies.families.layers import decoder_layers

    found: dict[int, Any] = {}

    def recorder(index: int) -> Any:
        def record(*_: Any) -> None:
            if handle.tokens is not None and handle.tokens.kept is not None:
                found[index] = handle.tokens.kept.mask.cpu()

        return record

    modules = {layer.index: layer.module for layer in decoder_layers(handle.model)}
    hooks = [modules[index].register_forward_hook(recorder(index)) for index in layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def runs(flags: list[bool]) -> list[tuple[int, int]]:
    """The runs of true values as pairs of a start and a length."""
    found: list[tuple[int, int]] = []
    for place, flag in enumerate(flags):
        if flag and found and sum(found[-1]) == place:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        elif flag:
            found.append((place, 1))
    return found


def picture_of(request: "Request") -> Any:
    """The first picture of a request."""
    return request.args[2]["visual"][0]
