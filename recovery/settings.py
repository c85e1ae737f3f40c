"""How a model is trained under a policy."""

from collections.abc import Mapping
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from ..policies.choice import StrictModel

Method = Literal["lora", "full", "connector", "router", "adapter"]
Count = Annotated[int, Field(ge=1)]

RANK: Final = 32
RATES: Final[Mapping[Method, float]] = {"lora": 2e-4, "full": 2e-5, "connector": 1e-3, "router": 1e-3, "adapter": 1e-3}


class TrainingSettings(StrictModel):
    """The settings of a training, also of one that follows a search.

    Attributes:
        method: What is trained: `lora`, an adapter beside the linear layers of the decoder; `full`,
            the decoder, its head, its embeddings and the connector; `connector`, what maps image features to
            embeddings, with the decoder frozen (ima-lmms); `router`, routers that rank image tokens from then on, and
            nothing else; `adapter`, adapters in place of skipped attentions (EAS), and nothing else. The vision tower
            is never trained. Routers and adapters that the policy names already are trained with what the method trains
            (p-MoD, with `full`).
        steps: Number of optimiser steps.
        batch_size: Examples in a forward, on each device.
        accumulate: Forwards in a step.
        learning_rate: The highest learning rate, which a cosine follows to 0; None takes 2e-4 for `lora`, 2e-5 for
            `full`, and 1e-3 for `connector`, `router` and `adapter`.
        warmup: Share of the steps in which the learning rate rises from 0.
        weight_decay: AdamW's weight decay.
        lora_rank: Rank of the LoRA adapter; its alpha is twice the rank.
        router_loss: Weight of a further loss: the cross-entropy between each router's σ(r) and what its layer kept,
            summed over layers. γ-MoD takes 0.01, p-MoD none.
        distil: `kl` trains on KL(dense || policy) at the answers' tokens; None trains on the answers themselves.
        precision: `bf16` computes in bfloat16 and keeps trained weights in float32; `fp32` computes in float32; `auto`
            is `bf16` for a model whose weights are bfloat16.
        gradient_checkpointing: Compute layers again in the backward pass, instead of keeping their activations.
        seed: Seed of the order of the examples and of an adapter's weights.
        save_every: Steps between checkpoints, from which a training can go on; None takes a tenth of `steps`.
    """

    method: Method
    steps: Count = 200
    batch_size: Count = 8
    accumulate: Count = 1
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.05
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    lora_rank: Count = 16
    # Left out where it is 0, so that a training that began without this key can go on.
    router_loss: Annotated[float, Field(ge=0, allow_inf_nan=False, exclude_if=lambda weight: weight == 0)] = 0.0
    distil: Literal["kl"] | None = None
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    gradient_checkpointing: bool = False
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    save_every: Count | None = None

    @property
    def rate(self) -> float:
        """The highest learning rate."""
        return RATES[self.method] if self.learning_rate is None else self.learning_rate


class RecoverySettings(TrainingSettings):
    """The settings of a recovery.

    Attributes:
        adapter_rank: Width in between of an adapter in place of an attention, even.
        skip: With `adapter`, how many of the attentions that the policy skips are to stay skipped: the training finds
            out which; None for all of them.
        freeze: Replace the mean and the gate of these adapters, once they are trained, by averages over training
            examples; then they cost nothing where the FFN is dense.
    """

    # Left out at their defaults, so that a training that began without these keys can go on.
    adapter_rank: Annotated[int, Field(ge=2, multiple_of=2, exclude_if=lambda rank: rank == RANK)] = RANK
    skip: Annotated[Count | None, Field(exclude_if=lambda count: count is None)] = None
    freeze: Annotated[bool, Field(exclude_if=lambda value: not value)] = False

    @model_validator(mode="after")
    def _chooses_adapters(self) -> Self:
        if self.skip is not None and self.method != "adapter":
            raise ValueError(f"found skip beside method {self.method}, expected method adapter")
        return self
