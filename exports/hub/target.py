"""The folder that `Policy.push_to_hub` uploads: the policy and its card, without weights."""

from pathlib import Path
from typing import ClassVar

from ...policies.card import is_hub_id
from ...policies.hub import POLICY, copy_ranking
from ...policies.policy import Policy
from ..reference import Reference
from ..target import Source, Target, with_model

SCRIPT = Path(__file__).parent / "run.py"


class HubFolder(Target):
    """Loads with `skipsearch.from_pretrained`, under every choice."""

    name: ClassVar[str] = "hub"
    text: ClassVar[str] = "a folder for the Hugging Face hub, which `skipsearch.from_pretrained` loads"
    relation: ClassVar[str] = "adapter"
    quantizes: ClassVar[bool] = True

    def can(self, policy: Policy, source: Source) -> list[str]:
        """See `Target.can`."""
        if source.id is None:
            return ["the policy's folder names its base model, and the model has neither a hub id nor a folder"]
        own = policy.model.id
        if is_hub_id(own) and is_hub_id(source.id) and own != source.id:
            return [f"the policy was made for {own}, and the model is {source.id}"]
        return []

    def write(self, policy: Policy, source: Source, folder: Path) -> list[str]:
        """See `Target.write`."""
        named = with_model(policy, source)
        named.save(folder / POLICY)
        copy_ranking(named, folder)
        notes = ["there are no weights: the base model is loaded, and the policy applied to it"]
        if not is_hub_id(named.model.id):
            notes.append(f"its base model is {named.model.id}: name one of the hub in {POLICY} before you upload it")
        return notes

    def check(self, folder: Path, reference: Reference) -> float:
        """See `Target.check`."""
        dtype = str(reference.dtype).removeprefix("torch.")
        base = reference.model_id or ""
        outputs = reference.run(SCRIPT, str(folder), base, dtype, reference.attention, python=self.options.python)
        return reference.difference(outputs)

    def load_lines(self, source: Source, folder: str) -> list[str]:
        """See `Target.load_lines`."""
        return ["import skipsearch", f'model = skipsearch.from_pretrained("{folder}")  # or the id of its repository']
