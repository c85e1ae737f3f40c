"""What the tokens of a layer do under a choice: which of them ask, are seen, attend alone, and are fed."""

from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

from ...choice import DOES, LayerChoice
from ..tokens import GROUPS, TokenGroups, scope

Does: TypeAlias = tuple[str, str]


@dataclass(frozen=True)
class Roles:
    """The groups of tokens that have each role in a layer; see `tokens.GROUPS`.

    Attributes:
        asks: Groups that attend, and whose keys and values are seen.
        seen_only: Groups whose keys and values are seen, and that do not attend.
        alone: Groups that attend, and that are seen by themselves only.
        fed: Groups that the FFN processes.
        parallel: Groups whose FFN reads the layer's input.
        narrow: Groups of `fed` that go through a share of the FFN's channels.
        all_heads: Groups of `asks` that all heads of the attention serve, where it has a share of its heads.
        paired: Groups that the next layer reads as they enter this one, see `wiring`.
        evicts: True where image tokens leave the layer's cache after the prompt.
    """

    asks: TokenGroups
    seen_only: TokenGroups
    alone: TokenGroups
    fed: TokenGroups
    parallel: TokenGroups
    narrow: TokenGroups
    all_heads: TokenGroups
    paired: TokenGroups
    evicts: bool

    @property
    def stores(self) -> TokenGroups:
        """The groups whose keys and values the layer stores."""
        return self.asks | self.seen_only

    @property
    def computes(self) -> bool:
        """False where no token is processed."""
        return bool(self.stores | self.alone | self.fed)

    @property
    def moves(self) -> TokenGroups:
        """The groups whose hidden states the layer changes."""
        return self.asks | self.alone | self.fed

    @property
    def moves_images(self) -> bool:
        """True where hidden states of image tokens change."""
        return bool(self.moves & {"image", "rest"})

    @property
    def shows_images(self) -> bool:
        """True where a token of a prompt attends, and image tokens are seen."""
        return bool(self.asks - {"answer"}) and bool(self.stores & {"image", "rest"})

    @property
    def reads_images(self) -> bool:
        """True where the text of a prompt attends to image tokens."""
        return "text" in self.asks and bool(self.stores & {"image", "rest"})


# Cached, because it is asked for whenever a policy is applied, and a search applies the same choices again and again.
@lru_cache(maxsize=4096)
def roles(choice: LayerChoice) -> Roles:
    """The roles under a choice in canonical form."""
    by_group = {group: _does(choice, group) for group in GROUPS}

    def that(sublayer: int, value: str) -> TokenGroups:
        return frozenset(group for group, does in by_group.items() if does[sublayer] == value)

    inside = frozenset(group for group in GROUPS if _is_inside(choice, group))
    empty: TokenGroups = frozenset({"image"}) if choice.ranks_images and choice.token_ratio == 0 else frozenset()
    asks, fed = that(0, "run") - empty, that(1, "run") - empty
    return Roles(
        asks=asks,
        seen_only=that(0, "keys_only") - empty,
        alone=that(0, "queries_only") - empty,
        fed=fed,
        parallel=inside if choice.wiring == "parallel" else frozenset(),
        narrow=fed & inside if choice.ffn_ratio is not None else frozenset(),
        all_heads=asks - inside if choice.head_ratio is not None else frozenset(),
        paired=scope(choice) if choice.wiring == "pair" else frozenset(),
        evicts=choice.evicts,
    )


def _is_inside(choice: LayerChoice, group: str) -> bool:
    """True where the sublayers of the choice are those of a group; tokens that a ratio leaves out have their own."""
    if group == "rest":
        return not choice.ranks_images and "image" in scope(choice)
    return group in scope(choice)


def _does(choice: LayerChoice, group: str) -> Does:
    """The values of `attention` and `ffn` for a group."""
    if group == "rest" and choice.ranks_images:
        return DOES[choice.rest]
    return (choice.attention, choice.ffn) if _is_inside(choice, group) else ("run", "run")
