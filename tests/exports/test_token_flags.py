"""Flags of runtimes that leave out image tokens before the first layer: for which policies, and why not for others."""

import pytest

from skipsearch import Policy
from skipsearch.exports.token_flags import flags

ONCE = {"score": "diverse", "reselect": "once"}


def policy_of(layers, **selection):
    return Policy.model_validate({"layers": layers, "token_selection": {**ONCE, **selection}})


@pytest.mark.parametrize(
    ("layers", "selection", "expected"),
    [
        ({0: {"token_ratio": 0.25}}, {}, ["pruning_ratio=75, relevance_weight=0",
                                          "--visualPrune --dartReductionRatio=0.75"]),
        # 100 * (1 - 0.42) is not 58 in binary.
        ({0: {"token_ratio": 0.42}}, {}, ["pruning_ratio=58, relevance_weight=0",
                                          "--visualPrune --dartReductionRatio=0.58"]),
        # Other ways to write the same.
        ({0: {"token_ratio": 0.5, "phase": "prefill"}, 3: {"token_ratio": 0.5}},
         {"score": "relevance", "diversity": 1.0},
         ["pruning_ratio=50, relevance_weight=0", "--visualPrune --dartReductionRatio=0.5"]),
        ({0: {"token_ratio": 0.098}}, {}, [None, "--visualPrune --dartReductionRatio=0.902"]),
    ],
)  # fmt: skip
def test_a_share_before_the_first_layer_is_a_flag(layers, selection, expected):
    found = flags(policy_of(layers, **selection))
    assert [*found] == ["openvino-genai", "tensorrt-edge-llm"]
    assert [flag.text for flag in found.values()] == expected
    if expected[0] is None:
        assert found["openvino-genai"].reasons == [
            "pruning_ratio is a whole percentage, and this policy leaves out 90.2 %"
        ]


@pytest.mark.parametrize(
    ("layers", "selection", "reasons"),
    [
        ({}, {}, ["nothing else; found a dense model"]),
        ({0: {"token_ratio": 0.5, "ffn": "skip"}}, {}, ["nothing else; found skip_ffn + token_ratio 0.5 in layer 0"]),
        ({0: {"token_ratio": 0.5}, 2: {"token_ratio": 0.25}}, {}, ["layer 0; token_ratio 0.25 in layer 2"]),
        ({1: {"token_ratio": 0.5}}, {}, ["nothing else; found token_ratio 0.5 in layer 1"]),
        ({0: {"token_ratio": 0.0}}, {}, ["keeps some image tokens; found token_ratio 0 in layer 0"]),
        ({0: {"token_ratio": 0.5}}, {"dropped": "merge"}, ["found the score diverse, merged, expected diverse"]),
        ({0: {"token_ratio": 0.5}}, {"score": "norm", "reselect": "each_layer"},
         ["found reselect: each_layer, expected once", "found the score norm, expected diverse"]),
    ],
)  # fmt: skip
def test_what_else_a_policy_does_is_named(layers, selection, reasons):
    for flag in flags(policy_of(layers, **selection)).values():
        assert flag.text is None and len(flag.reasons) == len(reasons)
        assert all(found.endswith(part) for found, part in zip(flag.reasons, reasons, strict=True)), flag.reasons
