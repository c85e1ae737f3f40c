"""Which patches of a picture a policy keeps: recorded from the run, and mapped to places in the picture."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2VLImageProcessor

import tiny
from skipsearch.evaluators.accuracy.accuracy import AccuracyEvaluator, AccuracyOptions
from skipsearch.evaluators.base import Options
from skipsearch.evaluators.patches.kept_patches import NO_GRID, NO_PICTURE, KeptPatchesEvaluator, drawn_layers, runs
from skipsearch.evaluators.patches.patch_grid import data_uri, merged_grid, patch_grid, seen_picture
from skipsearch.evaluators.subject import ModelSpec, load_subject
from skipsearch.policies.apply import apply_policy
from skipsearch.policies.policy import Policy

DIGITS = Path(__file__).parents[2] / "spaces" / "digits"
SIDE, PATCHES, LAYERS = 7, 49, 12


def evaluators(folder, tasks):
    subject = load_subject(ModelSpec(id=str(folder), dtype="float32", device="cpu"))
    options = AccuracyOptions(tasks=[str(task) for task in tasks], search={"limit": 6}, report={"limit": 2})
    accuracy = AccuracyEvaluator(options, subject)
    return SimpleNamespace(subject=subject, accuracy=accuracy, kept=KeptPatchesEvaluator(Options(), subject, accuracy))


@pytest.fixture(scope="module")
def digits():
    return evaluators(DIGITS / "model", [DIGITS / "tasks" / "digits_search.yaml"])


def measured(world, policy):
    with torch.inference_mode(), apply_policy(world.subject.model, policy) as handle:
        return world.kept.measure(handle, "search")["kept_patches"]


def places(kept):
    return {place for start, length in kept for place in range(start, start + length)}


def policy(layers, **selection):
    return Policy.model_validate({"layers": layers, "token_selection": selection})


@pytest.mark.parametrize("rest", ["skip", "keys_only", "attention", "ffn"])
def test_evenly_spaced_patches_are_recorded_as_such(digits, rest):
    layers = {2: {"token_ratio": 0.5, "rest": rest}, 8: {"token_ratio": 0.25, "rest": rest}}
    found = measured(digits, policy(layers, score="uniform"))
    expected = {
        str(layer): {i for i in range(PATCHES) if (i + 1) * keep // PATCHES > i * keep // PATCHES}
        for layer, keep in ((2, 24), (8, 12))
    }
    assert [{layer: places(one) for layer, one in example.items()} for example in found.detail["kept"]] == [
        expected
    ] * 3
    assert found.n == 3 and found.value == pytest.approx((24 + 12) / 2 / PATCHES)


def test_the_patches_with_the_largest_norm_are_recorded_for_each_picture(digits):
    found = measured(digits, policy({5: {"token_ratio": 0.3}}, score="norm"))
    entering = []
    layer = digits.subject.model.get_decoder().layers[5]
    hook = layer.register_forward_pre_hook(lambda _, args, kwargs: entering.append(args[0]), with_kwargs=True)
    try:
        for _, _, request in digits.accuracy.with_one_picture(3):
            with torch.inference_mode():
                digits.subject.model(**digits.accuracy.prompt_of(request))
    finally:
        hook.remove()
    for example, (_, _, request), states in zip(
        found.detail["kept"], digits.accuracy.with_one_picture(3), entering, strict=True
    ):
        of_image = digits.accuracy.prompt_of(request)["input_ids"][0] == digits.subject.model.config.image_token_id
        best = states[0, of_image].norm(dim=-1).topk(14).indices.tolist()
        assert places(example["5"]) == {*best}


def test_dense_has_the_pictures_and_policies_without_ratios_have_nothing(digits):
    pictures = measured(digits, Policy()).detail["pictures"]
    assert [tuple(one["grid"]) for one in pictures] == [(SIDE, SIDE)] * 3
    assert all(one["image"].startswith("data:image/jpeg;base64,") and one["text"].endswith("?") for one in pictures)
    assert measured(digits, policy({3: {"ffn": "skip"}})).detail["kept"] == [{}] * 3


def test_a_patch_of_the_picture_is_the_token_at_its_place(digits):
    """Another patch of the picture changes the features of the token at that place most."""
    _, _, request = digits.accuracy.with_one_picture(1)[0]
    inputs, model = digits.accuracy.prompt_of(request), digits.subject.model
    rows, columns = patch_grid(digits.subject, inputs, PATCHES)
    edge = inputs["pixel_values"].shape[-1] // rows

    def features(pixels):
        with torch.inference_mode():
            return model.get_image_features(pixel_values=pixels).pooler_output[0].reshape(PATCHES, -1)

    before = features(inputs["pixel_values"])
    for row, column in ((1, 5), (4, 2)):
        other = inputs["pixel_values"].clone()
        part = other[..., row * edge : (row + 1) * edge, column * edge : (column + 1) * edge]
        part.copy_(-part + 1.5 * torch.randn(part.shape, generator=torch.Generator().manual_seed(0)))
        changed = (features(other) - before).norm(dim=-1)
        assert int(changed.argmax()) == row * columns + column


def test_a_merged_patch_of_a_qwen_processor_is_the_token_at_its_place():
    """The processor orders patches by the tokens that they are merged to, and those go row by row."""
    processor = Qwen2VLImageProcessor(patch_size=4, merge_size=2, min_pixels=16 * 24, max_pixels=16 * 24)
    picture = np.zeros((16, 24, 3), dtype=np.uint8)
    picture[8:16, 8:16] = 255
    made = processor(images=[Image.fromarray(picture)], return_tensors="pt")
    config = SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=2))
    rows, columns = merged_grid(config, made["image_grid_thw"].tolist(), 6)
    assert (rows, columns) == (2, 3)
    tokens = made["pixel_values"].reshape(rows * columns, -1).mean(dim=1)
    assert int(tokens.argmax()) == 1 * columns + 1
    assert merged_grid(config, [[1, 4, 6]], 7) is merged_grid(config, [[2, 4, 6]], 6) is None
    assert merged_grid(config, [[1, 4, 6]] * 2, 12) is merged_grid(SimpleNamespace(), [[1, 4, 6]], 6) is None


def test_the_picture_is_the_one_that_the_processor_leaves(digits):
    _, _, request = digits.accuracy.with_one_picture(1)[0]
    original = request.args[2]["visual"][0]
    shown = seen_picture(digits.subject, digits.accuracy.prompt_of(request), original)
    assert np.abs(np.asarray(shown, int) - np.asarray(original.convert("RGB"), int)).max() <= 1
    assert len(data_uri(original.resize((900, 700)))) < 60_000


def test_what_cannot_be_drawn_is_told(digits, tmp_path, monkeypatch):
    monkeypatch.setattr("skipsearch.evaluators.patches.patch_grid.SQUARE", {"another"})
    assert measured(digits, Policy()).detail == {"note": NO_GRID}
    monkeypatch.undo()
    text = evaluators(tiny.tiny_llava(tmp_path), [tiny.text_tasks(tmp_path, 12)["text_gen"]])
    assert measured(text, Policy()).detail == {"note": NO_PICTURE}


@pytest.mark.parametrize(
    "layers, expected",
    [
        ({}, []),
        ({4: {"token_ratio": 0.5}}, [4]),
        ({1: {"ffn": "skip"}, 4: {"token_ratio": 0.5}, 6: {"token_ratio": 0}, 9: {"token_ratio": 0.5}}, [4, 9]),
    ],
)
def test_the_first_and_the_last_layer_with_a_ratio_are_drawn(layers, expected):
    assert drawn_layers(policy(layers), LAYERS) == expected


@pytest.mark.parametrize("flags, expected", [([], []), ([1, 1, 0, 1], [(0, 2), (3, 1)]), ([0, 0, 1], [(2, 1)])])
def test_runs(flags, expected):
    assert runs([*map(bool, flags)]) == expected
