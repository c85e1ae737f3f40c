"""Where a search sends its trials, beside its own database: the `log` section of a space."""

from typing import Annotated

from pydantic import Field

from ...policies.choice import StrictModel

Target = Annotated[str, Field(min_length=1)]


class Log(StrictModel):
    """The loggers of a search; each needs the package of its name as an extra.

    Attributes:
        tensorboard: A folder for TensorBoard's event files, relative to where the command runs.
        mlflow: The URI of an MLflow tracking store, such as `sqlite:///mlflow.db`.
        wandb: A project of Weights & Biases.
    """

    tensorboard: Target | None = None
    mlflow: Target | None = None
    wandb: Target | None = None

    @property
    def settings(self) -> dict[str, str]:
        """The loggers that are asked for, with their settings."""
        return {name: value for name, value in self if value is not None}
