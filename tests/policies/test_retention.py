"""The store keeps what saves most: what policies begin with often, and what is far from the next kept one before it."""

from dataclasses import dataclass

from skipsearch.policies.runtime.retention import PrefixTrie, Store


@dataclass(frozen=True)
class Sheet:
    """A value of one byte."""

    name: str = ""
    nbytes: int = 1


def store(max_bytes: int) -> tuple[PrefixTrie, Store]:
    trie = PrefixTrie()
    return trie, Store(max_bytes, trie)


def passing(trie: PrefixTrie, kept: Store, policy: str, batch: str = "batch") -> int:
    """Visit with a policy, one letter a layer, and keep what is new; how many layers were saved."""
    path = trie.visit(policy)
    known = kept.find(batch, path)
    first = 0 if known is None else known[0] + 1
    for place in range(first, len(path)):
        kept.put(batch, path[place], Sheet(policy[: place + 1]))
    return first


def test_policies_share_the_nodes_of_what_they_begin_with():
    trie = PrefixTrie()
    one, other, same = (trie.visit(policy) for policy in ("abcd", "abxd", "abcd"))
    assert one == same and one[:2] == other[:2] and not {*one[2:]} & {*other[2:]}
    assert [*trie.ancestors(one[3])] == [one[2], one[1], one[0], -1]


def test_what_comes_more_often_or_was_here_later_counts_more():
    trie = PrefixTrie()
    first, *_, last = [trie.visit(policy) for policy in ("ab", "ac", "ad")]
    assert trie.log_count(first[0]) > trie.log_count(last[1]) > trie.log_count(first[1])


def test_a_policy_counts_once_on_all_its_batches():
    trie, again = PrefixTrie(), PrefixTrie()
    path = [trie.visit("ab") for _ in range(3)][0]
    assert trie.log_count(path[1]) == again.log_count(again.visit("ab")[1])


def test_the_last_value_on_the_path_is_found():
    trie, kept = store(100)
    assert passing(trie, kept, "abcd") == 0
    assert passing(trie, kept, "abxd") == 2
    assert passing(trie, kept, "abxy") == 3
    assert kept.find("batch", trie.visit("abxd"))[1] == Sheet("abxd")
    assert kept.find("other batch", trie.visit("abxd")) is None


def test_no_more_is_kept_than_fits_and_a_walk_in_circles_finds_something_all_the_same():
    for max_bytes in (1, 3, 7):
        trie, kept = store(max_bytes)
        batches = [f"batch {number}" for number in range(4)]
        saved = [sum(passing(trie, kept, f"abcdefg{n}", batch) for batch in batches) for n in range(9)]
        paths = [trie.visit(f"abcdefg{n}") for n in range(9)]
        found = {(batch, kept.find(batch, path[:end])) for batch in batches for path in paths for end in range(1, 9)}
        assert len({(batch, one[1]) for batch, one in found if one is not None}) == max_bytes
        # Dropping the oldest would have dropped each state just before it is asked for.
        assert all(count >= max_bytes for count in saved[3:])


def test_of_few_values_those_far_apart_on_a_busy_path_are_kept():
    trie, kept = store(2)
    for number in range(30):
        passing(trie, kept, f"abcdef{number}")
    for number in range(30):
        passing(trie, kept, f"x{number}yzuvw")
    assert passing(trie, kept, "abcdef") >= 5


def test_a_search_that_moves_on_takes_the_room():
    trie, kept = store(3)
    for number in range(40):
        passing(trie, kept, f"abcdef{number:02}")
    saved = [passing(trie, kept, f"uvwxyz{number:03}") for number in range(200)]
    assert max(saved[:2]) < 6 <= min(saved[-9:])


def test_what_is_too_large_by_itself_pushes_nothing_out():
    trie, kept = store(3)
    passing(trie, kept, "abc")
    path = trie.visit("abx")
    kept.find("batch", path)
    kept.put("batch", path[2], Sheet(nbytes=4))
    assert kept.find("batch", path) == (1, Sheet("ab"))


def test_nothing_is_left_when_it_is_cleared():
    trie, kept = store(9)
    passing(trie, kept, "abc")
    kept.clear()
    assert passing(trie, kept, "abc") == 0
