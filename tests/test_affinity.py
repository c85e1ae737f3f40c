"""Policies that begin alike go to the same worker, and follow each other."""

import itertools

from skipsearch import Policy
from skipsearch.search.affinity import alike, in_order, nearest

LAYERS = 4
NAMES = {"k": {}, "a": {"attention": "skip"}, "f": {"ffn": "skip"}, "r": {"token_ratio": 0.5}}


def made(letters, **selection):
    layers = {index: NAMES[letter] for index, letter in enumerate(letters) if letter != "k"}
    return Policy.model_validate({"layers": layers, "token_selection": selection})


def test_layers_are_alike_up_to_the_first_that_differs():
    assert alike(made("akkf"), made("akkf"), LAYERS) == 4
    assert alike(made("akkf"), made("akff"), LAYERS) == 2
    assert alike(made("akkf"), made("fkkf"), LAYERS) == 0
    assert alike(made("akrf"), made("akrf", score="norm"), LAYERS) == 2


def test_spellings_of_one_choice_are_alike():
    other = Policy.model_validate({"layers": {0: {"attention": "skip", "token_ratio": 1.0}}})
    assert alike(made("akkk"), other, LAYERS) == 4


def test_a_policy_goes_to_the_worker_that_measured_one_like_it():
    workers = [[made("ffff")], [made("aakk"), made("kkkk")], []]
    assert nearest([made("aaff")], workers, LAYERS) == (0, 1)
    assert nearest([made("rkkk"), made("ffka")], workers, LAYERS) == (1, 0)


def test_without_anything_in_common_who_waits_longest_goes_first():
    assert nearest([made("rkkk"), made("rrkk")], [[], [made("ffff")]], LAYERS) == (0, 0)


def test_in_order_every_beginning_stands_in_one_piece():
    policies = [made("".join(letters)) for letters in itertools.product("kaf", repeat=LAYERS)]
    ordered = in_order(policies[::7] + policies[3::5], LAYERS)
    for depth in range(1, LAYERS):
        beginnings = [tuple(policy.choice(layer).label for layer in range(depth)) for policy in ordered]
        assert len([*itertools.groupby(beginnings)]) == len({*beginnings})
