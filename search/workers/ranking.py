"""Ranks a model's channels and heads by energy, once before the search, and gives the ranking to its workers."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ...evaluators.examples import ExampleEvaluator
from ...policies.errors import EvaluatorError, PolicyError, StudyError
from ...policies.rankings.files import EXAMPLES, checked_content, digest
from ..places import RANKING
from ..space.layer_choices import as_options
from ..space.space import Space

if TYPE_CHECKING:
    from .evaluate import PolicyEvaluator


class Ranks(Protocol):
    """The workers of a search, as far as rankings concern them."""

    def rank_widths(self) -> bytes:
        """Make the ranking on one worker; see `make_ranking`."""

    def share_ranking(self, content: bytes) -> None:
        """Give a ranking to every worker; see `take_ranking`."""


def needs_ranking(space: Space, num_layers: int) -> bool:
    """True where policies of a space rank channels or heads by energy."""
    return "energy" in as_options(space.width_selection.ranking) and any(ranked_layers(space, num_layers))


def ranked_layers(space: Space, num_layers: int) -> tuple[list[int], list[int]]:
    """The layers that may run a share of their channels, and those that may run a share of their heads."""
    domains = [*enumerate(space.domains(num_layers))]
    channels = [index for index, domain in domains if any(choice.ffn_ratio is not None for choice in domain)]
    heads = [index for index, domain in domains if any(choice.head_ratio is not None for choice in domain)]
    return channels, heads


def make_ranking(evaluator: "PolicyEvaluator") -> bytes:
    """Rank the channels and the heads of the layers that may run a share of them, on prompts of the search split.

    Returns:
        The content of the file; see `policies.rankings.scores`.

    Raises:
        ModelError: the channels or the heads of one of these layers cannot be ranked.
        EvaluatorError: there are no examples, or their prompts cannot be made.
    """
    from ...evaluators.statistics import on_device
    from ...policies.rankings.energy import find_energies
    from ...policies.rankings.scores import ranking_file

    space, model = evaluator.space, evaluator.subject.model
    examples = next((one for one in evaluator.evaluators if isinstance(one, ExampleEvaluator)), None)
    if examples is None:
        hint = "add `accuracy` to the space, or name a file with `width_selection.file`"
        raise EvaluatorError("there are no examples to rank channels and heads on", hint=hint)
    alpha = space.width_selection.alpha
    inputs = (on_device(prompt, model) for prompt in examples.calibration_prompts(EXAMPLES))
    found = find_energies(model, inputs, *ranked_layers(space, evaluator.num_layers), alpha=alpha)
    return ranking_file(found.scores, {"alpha": alpha, "examples": found.examples, "tokens": found.tokens})


def take_ranking(evaluator: "PolicyEvaluator", content: bytes) -> None:
    """Let policies have a ranking in this process.

    Raises:
        PolicyMismatch: it is none, or does not fit the model.
    """
    from ...policies.families.layers import decoder_layers
    from ...policies.rankings.scores import check_scores, read_scores, remember

    layers = decoder_layers(evaluator.subject.model)
    channels, heads = ranked_layers(evaluator.space, evaluator.num_layers)
    check_scores(read_scores(content, "the ranking"), [layers[one] for one in channels], [layers[one] for one in heads])
    remember(content)


def with_ranking(
    space: Space,
    num_layers: int,
    pool: Ranks,
    file: Path | None = None,
    sha256: str | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> Space:
    """The space with the ranking of its channels and heads, which all workers have then.

    Args:
        space: The space.
        num_layers: The number of the model's decoder layers.
        pool: The workers.
        file: The study's copy of the ranking, which is read, or written once it is made; None keeps none.
        sha256: The ranking that the study was begun with; None for a new study.
        note: Shows what is being done.

    Raises:
        StudyError: the study was begun with a ranking that is not there.
        SkipsearchError: see `make_ranking` and `take_ranking`.
    """
    if not needs_ranking(space, num_layers):
        return space
    if file is not None and sha256 is not None:
        content = ranking_of_study(space, file, sha256)
    elif space.width_selection.file is not None:
        content = given_ranking(space)
    else:
        note("ranking the channels and heads of the model by their energy")
        content = pool.rank_widths()
    pool.share_ranking(content)
    if file is not None and sha256 is None:
        # A process that is killed here leaves no half a file.
        beside = file.with_suffix(".part")
        beside.write_bytes(content)
        beside.replace(file)
    selection = space.width_selection.model_copy(update={"file": RANKING, "sha256": digest(content)})
    return space.model_copy(update={"width_selection": selection})


def given_ranking(space: Space) -> bytes:
    """The content of the file that a space names.

    Raises:
        PolicyError: it cannot be read, or is another one than the space says.
    """
    file = Path(space.width_selection.file or "")
    try:
        content = file.read_bytes()
    except OSError as cause:
        hint = "name a file that `skipsearch rank` wrote, with `width_selection.file`"
        raise PolicyError(f"the ranking {file} cannot be read", [str(cause.strerror)], hint) from None
    return checked_content(file, space.width_selection.sha256 or digest(content))


def ranking_of_study(space: Space, file: Path, sha256: str) -> bytes:
    """The content of the study's own copy.

    Raises:
        StudyError: it is not what the study was begun with, or the space names another one now.
    """
    try:
        content = checked_content(file, sha256)
    except PolicyError as cause:
        hint = f"restore {file.name} from a copy, such as the one beside the study's policies, or begin a new study"
        raise StudyError(
            "the study lacks the ranking that it was begun with", [cause.what, *cause.details], hint
        ) from None
    given = Path(space.width_selection.file) if space.width_selection.file is not None else None
    if given is not None and given.is_file() and digest(given.read_bytes()) != sha256:
        found = f"{given}: found SHA-256 {digest(given.read_bytes())}, expected {sha256}"
        hint = "resume with the ranking that it was begun with, or give the new study another `--name`"
        raise StudyError("the study was made for another ranking", [found], hint)
    return content
