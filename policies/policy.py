"""Policies: which computations a model leaves out, as frozen values that are read from and written to YAML."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import yaml
from pydantic import Field, PrivateAttr, ValidationInfo, field_validator, model_validator

from .choice import KEEP, LAST_LAYER, LayerChoice, StrictModel, WidthSelection, has_width
from .document import Document
from .drawing import drawing
from .errors import PolicyError, PolicyMismatch
from .hub import POLICY, download, policy_file, save_folder, upload
from .metadata import Measured, ModelRef, Provenance, readable_number
from .quantized.kinds import NONE, Quantization
from .schedules import Schedule
from .scores.router import impossible_routes
from .scores.token_selection import TokenSelection, canonical_tokens
from .trained.files import TrainedWeights
from .wiring.pairs import impossible_pairs, without_empty_pairs
from .wording import escape_invisible

SCHEMA: Final = "skipsearch/policy/v1"
LayerIndex = Annotated[int, Field(ge=0, le=LAST_LAYER)]


class Policy(StrictModel):
    """Which computations a model leaves out.

    Attributes:
        schema: The kind of the file and the version of its keys.
        model: The model the policy was made for; a hand-written policy may leave it out.
        schedule: A generator of choices, such as `fastv: {layer: 2, token_ratio: 0.5}`. It is expanded into `layers`
            when the policy is made, which needs the model's `num_layers`.
        layers: By 0-based layer number, the choices that differ from keep, or from the schedule's choice.
        token_selection: How image tokens are selected where a layer has a token ratio; by default as the schedule's
            source does.
        width_selection: How channels and heads are selected where a layer has an `ffn_ratio` or a `head_ratio`.
        weights: Weights that were trained under the policy, in files beside it; `skipsearch recover` writes them.
        measured: Measurements of a search, by metric; `accuracy` on the report split, `search_accuracy` on the search
            split.
        provenance: The study and trial it comes from.
    """

    schema_: Annotated[Literal["skipsearch/policy/v1"], Field(alias="schema")] = SCHEMA
    model: ModelRef = ModelRef()
    schedule: Annotated[Schedule | None, Field(exclude=True, repr=False)] = None
    layers: dict[LayerIndex, LayerChoice] = {}
    token_selection: TokenSelection = TokenSelection()
    width_selection: WidthSelection = WidthSelection()
    # Left out where there are none, so that fingerprints stay what they were.
    weights: Annotated[TrainedWeights | None, Field(exclude_if=lambda weights: weights is None)] = None
    measured: dict[str, Measured] = {}
    provenance: Provenance = Provenance()
    _folder: Path | None = PrivateAttr(default=None)

    @field_validator("layers", "measured", mode="before")
    @classmethod
    def _empty_is_a_mapping(cls, value: Any) -> Any:
        return {} if value is None else value

    @field_validator("schedule")
    @classmethod
    def _needs_a_depth(cls, value: Schedule | None, info: ValidationInfo) -> Schedule | None:
        model = info.data.get("model")  # None where it is invalid itself.
        if value is not None and model is not None and model.num_layers is None:
            raise ValueError("found no number of layers to expand it for; write `model: {num_layers: 32}`")
        return value

    @model_validator(mode="after")
    def _expanded(self) -> Self:
        if self.schedule is not None and self.model.num_layers is not None:
            choices = self.schedule.choices(self.model.num_layers)
            given = {index: choice for index, choice in enumerate(choices) if choice != KEEP}
            selection = self.token_selection
            if "token_selection" not in self.model_fields_set:
                selection = TokenSelection.model_validate(self.schedule.selection)
            # The value is frozen, so pydantic would refuse to set its fields.
            self.__dict__.update(schedule=None, layers={**given, **self.layers}, token_selection=selection)
        return self

    @model_validator(mode="after")
    def _can_be_routed(self, info: ValidationInfo) -> Self:
        # `read` reports the mistakes of a document together with others, each with its line.
        wrong = impossible_routes(self.layers, self.token_selection.score)
        if wrong and not isinstance(info.context, Document):
            raise ValueError("; ".join(f"layers[{index}]: {reason}" for index, reason in wrong.items()))
        return self

    @model_validator(mode="after")
    def _keeps_the_tokens_of_adapters(self) -> Self:
        adapted = [index for index, choice in self.layers.items() if choice.attention == "adapter"]
        removes = self.token_selection.reselect == "once" and any(one.ranks_images for one in self.layers.values())
        if adapted and removes:
            reason = "an adapter takes the mean over all tokens of a prompt; write `reselect: each_layer`"
            raise ValueError(f"found reselect: once beside attention: adapter in layer {adapted[0]}; {reason}")
        return self

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a policy file, or the one in a folder such as `skipsearch recover` writes.

        Raises:
            PolicyError: listing all mistakes in the file, each with its line and column.
        """
        file = Path(path) / POLICY if Path(path).is_dir() else Path(path)
        policy = cls.read(Document.read(file, PolicyError))
        # A folder of trained weights has the ranking of channels too.
        name = None if policy.weights is None else policy.weights.folder
        return policy.beside(file.parent / (name or "")) if policy.files else policy

    @classmethod
    def from_pretrained(cls, place: str | Path, revision: str | None = None) -> Self:
        """Read the policy of a folder, or of a repository of the Hugging Face hub.

        Args:
            place: A folder, or the id of a repository such as `user/name`.
            revision: A branch, tag or commit of the repository.

        Raises:
            HubError: there is no such folder, repository or revision, or no policy in it.
            PolicyError: see `load`.
        """
        policy = cls.load(policy_file(place, revision))
        if not Path(place).expanduser().is_dir():
            inside = None if policy.weights is None else policy.weights.folder
            for name in policy.files:
                download(str(place), revision, "/".join(filter(None, (inside, name))))
        return policy

    @classmethod
    def read(cls, document: Document) -> Self:
        """The policy that a document describes.

        Raises:
            PolicyError: see `load`.
        """
        document.require_schema(SCHEMA)
        policy = document.validate(cls)
        count = policy.model.num_layers
        unrouted = impossible_routes(policy.layers, policy.token_selection.score)
        reasons = [*impossible_pairs(policy.layers, count).items(), *unrouted.items()]
        if count is not None:
            beyond = (index for index in policy.layers if index >= count)
            reasons += [(index, f"found layer {index}, expected 0 to {count - 1}") for index in beyond]
        problems = [document.problem(("layers", index), text) for index, text in reasons]
        if policy.width_selection.ranking == "energy" and policy.width_selection.file is None:
            text = "found no file and sha256, expected those that `skipsearch rank` prints"
            problems.append(document.problem(("width_selection", "ranking"), text))
        if problems:
            raise document.failure(problems)
        return policy

    @classmethod
    def of(
        cls,
        choices: list[LayerChoice],
        selection: TokenSelection = TokenSelection(),
        width: WidthSelection = WidthSelection(),
        quantization: Quantization = NONE,
    ) -> Self:
        """Make a policy from one choice for each layer, in canonical form."""
        layers, model = dict(enumerate(choices)), ModelRef(quantization=quantization)
        return cls(model=model, layers=layers, token_selection=selection, width_selection=width).canonical()

    def canonical(self) -> Self:
        """The canonical form: equal `layers` for policies that compute the same; measurements and provenance stay."""
        changed = {index: choice.canonical() for index, choice in sorted(self.layers.items())}
        changed, selection = canonical_tokens(changed, self.token_selection)
        layers = without_empty_pairs({index: choice for index, choice in changed.items() if choice is not KEEP})
        width = self.width_selection if has_width(layers) else WidthSelection()
        return self.model_copy(update={"layers": layers, "token_selection": selection, "width_selection": width})

    @property
    def folder(self) -> Path | None:
        """The folder that holds the files of the policy; None where it names none, or was not read from there."""
        return self._folder

    @property
    def files(self) -> tuple[str, ...]:
        """The names of the files beside the policy: trained weights, and the ranking of channels."""
        ranking = self.width_selection.file
        return (*(self.weights.files if self.weights is not None else ()), *([] if ranking is None else [ranking]))

    def beside(self, folder: str | Path) -> Self:
        """The same policy, whose files lie in a folder."""
        policy = self.model_copy()
        policy._folder = Path(folder).resolve()
        return policy

    @property
    def fingerprint(self) -> str:
        """A hash of 16 hex digits, equal for policies that compute the same."""
        canonical = self.canonical()
        plain: dict[str, Any] = {
            "layers": {str(index): choice.document() for index, choice in canonical.layers.items()},
            "token_selection": canonical.token_selection.model_dump(),
        }
        if has_width(canonical.layers):
            # The content of a ranking decides, and not the name of its file.
            plain["width_selection"] = canonical.width_selection.model_dump(exclude={"file"})
        if self.model.quantization != NONE:
            plain["quantization"] = self.model.quantization
        if self.weights is not None:
            plain["weights"] = self.weights.model_dump(exclude={"folder"})
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def is_dense(self) -> bool:
        """True where the policy leaves nothing out, and runs with the model's own weights, not quantised."""
        if self.weights is not None or self.model.quantization != NONE:
            return False
        return all(choice.canonical() is KEEP for choice in self.layers.values())

    def choice(self, layer: int) -> LayerChoice:
        """What a layer does."""
        return self.layers.get(layer, KEEP)

    def choices(self, num_layers: int) -> list[LayerChoice]:
        """What every layer does, first to last."""
        return [self.choice(index) for index in range(num_layers)]

    @property
    def num_layers(self) -> int:
        """The number of layers of the model it was made for; where it does not say, up to the last changed layer."""
        return self.model.num_layers or max(self.layers, default=0) + 1

    def check_fits(self, num_layers: int, model_name: str) -> None:
        """Refuse a model with another number of layers, and pairs of layers that cannot be.

        Raises:
            PolicyMismatch: the policy was made for another number of layers, changes a layer that the model lacks, or
                begins a pair in the model's last layer, or in the second layer of another pair.
        """
        made_for = self.model.num_layers
        highest = max(self.layers, default=-1)
        if made_for is not None and made_for != num_layers:
            raise PolicyMismatch(
                f"policy was made for {made_for} layers, model has {num_layers}",
                [f"policy for {self.model.id or 'a model without an id'}, model {model_name}"],
                "use the model named in the policy, or search again for this one with `skipsearch run`",
            )
        if highest >= num_layers:
            raise PolicyMismatch(
                f"policy has a choice for layer {highest}, model has layers 0 to {num_layers - 1}",
                [f"model {model_name}"],
                "remove that layer from the policy, or use the model it was made for",
            )
        for index, reason in impossible_pairs(self.layers, num_layers).items():
            raise PolicyMismatch(f"layer {index} cannot begin a pair", [reason], "leave `wiring: pair` out there")

    def document(self) -> dict[str, Any]:
        """The canonical policy as plain data, in the order of the file, without empty keys."""
        canonical = self.canonical()
        data: dict[str, Any] = {"schema": SCHEMA}
        if canonical.model != ModelRef():
            data["model"] = canonical.model.model_dump()
        data["layers"] = {index: choice.document() for index, choice in canonical.layers.items()}
        if any(choice.token_ratio is not None for choice in canonical.layers.values()):
            data["token_selection"] = canonical.token_selection.model_dump()
        if has_width(canonical.layers):
            data["width_selection"] = canonical.width_selection.model_dump()
        if canonical.weights is not None:
            data["weights"] = canonical.weights.model_dump()
        if canonical.measured:
            data["measured"] = {
                name: {key: readable_number(value) for key, value in entry.model_dump(exclude_none=True).items()}
                for name, entry in canonical.measured.items()
            }
        if canonical.provenance != Provenance():
            data["provenance"] = canonical.provenance.model_dump(exclude_none=True)
        return data

    def to_yaml(self) -> str:
        """The text of the policy file, with one line for each layer."""
        options: dict[str, Any] = {"sort_keys": False, "default_flow_style": None, "width": 120}
        text: str = yaml.safe_dump(self.document(), **options, allow_unicode=True)
        # Invisible characters are escaped.
        return text if escape_invisible(text) == text else yaml.safe_dump(self.document(), **options)

    def _repr_html_(self) -> str | None:
        """The layer map for a notebook; None, which shows plain text, without the packages that draw it."""
        return drawing(self)

    def save(self, path: str | Path) -> None:
        """Write the policy file."""
        Path(path).write_text(self.to_yaml(), encoding="utf-8")

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the policy file and its card into a folder.

        Raises:
            HubError: see `hub.save_folder`.
        """
        save_folder(self, Path(folder))

    def push_to_hub(
        self, repository: str, *, private: bool | None = None, token: str | None = None, message: str | None = None
    ) -> str:
        """Upload what `save_pretrained` writes to a repository, which is created where it does not exist.

        Returns:
            The address of the commit.

        Raises:
            HubError: see `hub.upload`.
        """
        return upload(self, repository, private, token, message)
