"""Policies that begin alike go to the same worker."""

from skipsearch import Policy
from skipsearch.search.workers.prefix_affinity import common_prefix_length, layer_keys, longest_prefix

LAYERS = 4
NAMES = {"k": {}, "a": {"attention": "skip"}, "f": {"ffn": "skip"}, "r": {"token_ratio": 0.5}}


def made(letters, **selection):
    layers = {index: NAMES[letter] for index, letter in enumerate(letters) if letter != "k"}
    return layer_keys(Policy.model_validate({"layers": layers, "token_selection": selection}), LAYERS)


def test_layers_are_alike_up_to_the_first_that_differs():
    assert common_prefix_length(made("akkf"), made("akkf")) == 4
    assert common_prefix_length(made("akkf"), made("akff")) == 2
    assert common_prefix_length(made("akkf"), made("fkkf")) == 0
    assert common_prefix_length(made("akrf"), made("akrf", score="norm")) == 2


def test_spellings_of_one_choice_are_alike():
    other = Policy.model_validate({"layers": {0: {"attention": "skip", "token_ratio": 1.0}}})
    assert common_prefix_length(made("akkk"), layer_keys(other, LAYERS)) == 4


def test_a_policy_goes_to_the_worker_that_measured_one_like_it():
    workers = [[made("ffff")], [made("aakk"), made("kkkk")], []]
    assert longest_prefix(made("aaff"), workers) == 1
    assert longest_prefix(made("ffka"), workers) == 0


def test_without_a_common_prefix_the_worker_that_waits_longest_is_taken():
    assert longest_prefix(made("rkkk"), [[], [made("ffff")]]) == 0
