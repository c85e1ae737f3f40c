"""Windows over the grid of image tokens: the grids, the neighbours, the attention over them, and what is refused."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
import transformers as t
from contract import close, policy_of

from families import batch_of, built, run
from skipsearch import apply_policy
from skipsearch.policies.errors import ModelError, PolicyMismatch
from skipsearch.policies.runtime.tokens import ForwardTokens
from skipsearch.policies.windows import attend
from skipsearch.policies.windows.grids import Grid, grid_reader, grids_by_row
from skipsearch.policies.windows.neighbours import Neighbours, blocks_of

ROWS = [[Grid(5, 4)], [Grid(2, 3), Grid(3, 3)], []]


def tokens_of(rows, text):
    """Rows of text, and a grid after each; shorter ones are padded on the left."""
    lines = []
    for grids in rows:
        line = [0] * text
        for grid in grids:
            line += [1] * grid.tokens + [0] * text
        lines.append(line)
    longest = max(map(len, lines))
    image = torch.tensor([[0] * (longest - len(line)) + line for line in lines]).bool()
    mask = torch.tensor([[0] * (longest - len(line)) + [1] * len(line) for line in lines])
    return ForwardTokens.read(image, mask, None), mask.bool()


def dense_mask(rows, tokens, real, window):
    """What each token sees, from the words of the definition, shape (batch, tokens, tokens)."""
    batch, count = real.shape
    allowed = torch.ones(count, count).tril().bool() & real[:, None] & real[:, :, None]
    for row in range(batch):
        images = tokens.masks["image"][row].nonzero().flatten().tolist()
        at = {}
        for number, grid in enumerate(rows[row]):
            at |= {images.pop(0): (number, r, c) for r in range(grid.rows) for c in range(grid.columns)}
        for i, (grid, r, c) in at.items():
            for j in range(count):
                near = j in at and at[j][0] == grid and abs(at[j][1] - r) <= window and abs(at[j][2] - c) <= window
                allowed[row, i, j] = near or bool(tokens.masks["text"][row, j] and j < i)
    return allowed


@pytest.mark.parametrize("window", [0, 1, 2, 9])
@pytest.mark.parametrize("kind", ["sdpa", "eager", "capped", "sinks"])
def test_the_attention_is_that_of_a_dense_mask(window, kind, monkeypatch):
    monkeypatch.setattr(attend, "GATHERED", 2000)
    torch.manual_seed(window)
    tokens, real = tokens_of(ROWS, 3)
    (batch, count), heads, groups, width = real.shape, 6, 2, 8
    query = torch.randn(batch, heads, count, width)
    key, value = torch.randn(batch, groups, count, width), torch.randn(batch, groups, count, width + 1)
    allowed = dense_mask(ROWS, tokens, real, window)
    logits = query @ key.repeat_interleave(heads // groups, 1).transpose(-1, -2) * 0.3
    cap, sinks = (2.0 if kind == "capped" else None), (torch.randn(heads) if kind == "sinks" else None)
    logits = logits if cap is None else torch.tanh(logits / cap) * cap
    logits = logits.masked_fill(~allowed[:, None], float("-inf"))
    extra = [] if sinks is None else [sinks.view(1, -1, 1, 1).expand(batch, -1, count, 1)]
    weights = torch.cat([logits, *extra], dim=-1).softmax(-1)[..., :count]
    expected = (weights @ value.repeat_interleave(heads // groups, 1)).transpose(1, 2)
    model_mask = torch.ones(count, count).tril().bool() & real[:, None]
    found = attend.Running(
        Neighbours.of(tokens, ROWS, window), model_mask[:, None], "eager" if kind != "sdpa" else "sdpa"
    )
    monkeypatch.setattr(attend._thread, "running", found, raising=False)
    module = torch.nn.Identity()
    out, _ = attend.attend_to_neighbours(module, query, key, value, None, 0.3, 0.0, cap, sinks)
    torch.testing.assert_close(out[real], expected[real])


def test_blocks_hold_every_token_once_and_the_keys_of_all_its_neighbours():
    for grid in (Grid(5, 4), Grid(2, 3), Grid(24, 24), Grid(1, 9)):
        found = blocks_of(grid, 2)
        assert sorted(found.queries[found.queries >= 0].tolist()) == list(range(grid.tokens))
        reach = [min(-(-side // -(-side // 4)) + 4, side) for side in grid]
        assert found.keys.shape[1] == reach[0] * reach[1] and int(found.keys.max()) < grid.tokens
        seen = found.seen.sum(dim=-1)[found.queries >= 0]
        assert int(seen.max()) == min(5, grid.rows) * min(5, grid.columns)


def test_grids_match_the_order_of_the_model_s_image_tokens():
    config = t.LlavaNextConfig(
        vision_config={"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14},
        image_grid_pinpoints=[[336, 672], [672, 336], [672, 672], [1008, 336]],
    )
    sizes = torch.tensor([[480, 640], [1000, 333], [50, 400]])
    grids = list(grid_reader(config)(config, {"image_sizes": sizes}))
    features = [torch.zeros(1 + rows * columns, 576, 4) for rows, columns in ((2, 2), (3, 1), (1, 2))]
    pack = t.LlavaNextModel.pack_image_features
    _, lengths = pack(SimpleNamespace(config=config), features, sizes, "default", torch.zeros(4))
    assert [one.tokens + other.tokens for one, other in zip(grids[::2], grids[1::2], strict=True)] == lengths.tolist()
    assert grids[0] == grids[2] == Grid(24, 24)
    qwen = SimpleNamespace(model_type="qwen2_vl", vision_config=SimpleNamespace(spatial_merge_size=2))
    two = {"image_grid_thw": torch.tensor([[1, 4, 6], [2, 2, 8]])}
    assert grids_by_row(qwen, two, [6, 0, 8]) == [(Grid(2, 3),), (), (Grid(1, 4), Grid(1, 4))]
    intern = SimpleNamespace(vision_config=SimpleNamespace(image_size=[448, 448], patch_size=[14, 14]))
    intern.model_type, intern.downsample_ratio = "internvl", 0.5
    assert grids_by_row(intern, {}, [512]) == [(Grid(16, 16), Grid(16, 16))]


@pytest.mark.parametrize(("inputs", "counts"), [({"image_grid_thw": [[1, 4, 6]]}, [7]), ({"image_grid_thw": []}, [1])])
def test_image_tokens_that_fit_no_grid_are_refused(inputs, counts):
    config = SimpleNamespace(model_type="qwen2_vl", vision_config=SimpleNamespace(spatial_merge_size=2))
    with pytest.raises(ModelError, match="do not fit the grids"):
        grids_by_row(config, inputs, counts)
    with pytest.raises(ModelError, match="found no `image_grid_thw`"):
        grids_by_row(config, {}, counts)


@pytest.mark.parametrize(
    ("layers", "reselect", "words"),
    [
        ({1: {"window": 1, "token_ratio": 0.5}}, "each_layer", "beyond a ratio are no neighbours"),
        ({1: {"window": 1, "attention": "queries_only"}}, "each_layer", "seen by themselves only"),
        ({1: {"window": 1, "head_ratio": 0.5, "tokens": "image"}}, "each_layer", "divided between the tokens in scope"),
        ({1: {"token_ratio": 0.5}, 2: {"window": 1}}, "once", "layer 2 has window 1, layer 1 removes image tokens"),
    ],
)
def test_windows_where_image_tokens_are_missing_are_refused(layers, reselect, words):
    with pytest.raises(PolicyMismatch, match=words):
        apply_policy(built("llava", "sdpa"), policy_of(layers, "uniform", reselect))


def test_a_window_before_a_removal_and_a_score_of_its_layer_work():
    model, inputs = built("llava", "sdpa"), batch_of("llava", "middle").padded()
    layers = {0: {"window": 1}, 1: {"window": 9}, 2: {"token_ratio": 0.5}}
    with apply_policy(model, policy_of(layers, "attention", "once")):
        assert run(model, inputs).logits.isfinite().all()


def test_images_after_cached_tokens_and_attentions_are_refused():
    model, inputs = built("llava", "sdpa"), batch_of("llava", "middle").padded()
    with apply_policy(model, policy_of({1: {"window": 1}})):
        cache = run(model, {"input_ids": torch.tensor([[5, 6]])}, use_cache=True).past_key_values
        mask = torch.ones(1, 2 + inputs["input_ids"].shape[1]).long()
        with pytest.raises(ModelError, match="images after cached tokens"):
            run(model, {**inputs, "attention_mask": mask}, past_key_values=cache)
    eager = built("llava", "eager")
    with apply_policy(eager, policy_of({1: {"window": 1}})), pytest.raises(ModelError, match="output_attentions"):
        run(eager, inputs, output_attentions=True)


@pytest.mark.soak
def test_a_window_runs_under_a_compiler():
    model, inputs = built("llava", "sdpa"), batch_of("llava").padded()
    with apply_policy(model, policy_of({0: {"window": 1}, 2: {"window": 1, "ffn": "skip"}})):
        expected = run(model, inputs, use_cache=False).logits
        torch._dynamo.reset()
        close(run(torch.compile(model, backend="eager"), inputs, use_cache=False).logits, expected)


@pytest.mark.parametrize("layers", [{0: {"window": 1}}, {0: {"wiring": "pair", "tokens": "image"}}])
def test_copies_of_a_model_have_the_policy_and_training_has_its_gradients(layers):
    model, inputs = built("llava", "sdpa"), batch_of("llava", "middle").padded()
    with apply_policy(model, policy_of(layers)):
        expected = run(model, inputs).logits
        other = copy.deepcopy(model)
        assert torch.equal(run(other, inputs).logits, expected)
        other.train().gradient_checkpointing_enable()
        found = gradient(other, inputs)
        other.gradient_checkpointing_disable()
        torch.testing.assert_close(found, gradient(other, inputs))


def gradient(model, inputs):
    """The gradient of a weight before the layers of the policy."""
    model.zero_grad()
    run(model, inputs, gradients=True, use_cache=False).logits.square().mean().backward()
    return model.get_input_embeddings().weight.grad.clone()
