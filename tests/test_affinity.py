"""Policies that begin alike go to the same worker."""

from skipsearch import Policy
from skipsearch.search.workers.prefix_affinity import alike, nearest, steps

LAYERS = 4
NAMES = {"k": {}, "a": {"attention": "skip"}, "f": {"ffn": "skip"}, "r": {"token_ratio": 0.5}}


def made(letters, **selection):
    layers = {index: NAMES[letter] for index, letter in enumerate(letters) if letter != "k"}
    return steps(Policy.model_validate({"layers": layers, "token_selection": selection}), LAYERS)


def test_layers_are_alike_up_to_the_first_that_differs():
    assert alike(made("akkf"), made("akkf")) == 4
    assert alike(made("akkf"), made("akff")) == 2
    assert alike(made("akkf"), made("fkkf")) == 0
    assert alike(made("akrf"), made("akrf", score="norm")) == 2


def test_spellings_of_one_choice_are_alike():
    other = Policy.model_validate({"layers": {0: {"attention": "skip", "token_ratio": 1.0}}})
    assert alike(made("akkk"), steps(other, LAYERS)) == 4


def test_a_policy_goes_to_the_worker_that_measured_one_like_it():
    workers = [[made("ffff")], [made("aakk"), made("kkkk")], []]
    assert nearest(made("aaff"), workers) == 1
    assert nearest(made("ffka"), workers) == 0


def test_without_anything_in_common_who_waits_longest_goes_first():
    assert nearest(made("rkkk"), [[], [made("ffff")]]) == 0
