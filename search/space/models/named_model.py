"""One of the several models of a space, and what its study is called."""

from pathlib import PurePath
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from ....evaluators.subject import ModelSpec

NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$"


class NamedModel(ModelSpec):
    """One of several models; a space may give its id alone.

    Attributes:
        name: What its study and its folder are called; None for the last part of its id.
    """

    name: Annotated[str, Field(pattern=NAME)] | None = None

    @property
    def label(self) -> str:
        """What its study is called."""
        return self.name or PurePath(self.id).name

    @property
    def spec(self) -> ModelSpec:
        """The model without its name."""
        return ModelSpec.model_validate(self.model_dump(exclude={"name"}))


def as_mapping(value: Any) -> Any:
    """A model that is given by its id alone."""
    return {"id": value} if isinstance(value, str) else value


ModelEntry = Annotated[NamedModel, BeforeValidator(as_mapping)]
