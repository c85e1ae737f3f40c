"""The export target `gguf`: one file for llama.cpp and what builds on it."""

from pathlib import Path
from typing import ClassVar

from ...policies.errors import ExportError
from ...policies.families.layers import decoder_layers
from ...policies.policy import Policy
from ..reference import Reference
from ..target import Source, Target, named_choices
from .architecture import (
    DECI,
    architecture_of,
    embedding_rows,
    model_reasons,
    text_config,
    unread_tensors,
    unreadable,
)
from .blocks import blocks_of, written_zeros
from .proof import has_llama, read_back, run_llama
from .rules import NoVocabulary
from .vocabulary import Vocabulary, vocabulary_of
from .write import write_file

FILE = "model.gguf"
CHOICES = ("skip_layer", "skip_attention", "skip_ffn")


class Gguf(Target):
    """Skipped layers are gone; skipped sublayers are absent where llama.cpp's architecture `deci` allows that."""

    name: ClassVar[str] = "gguf"
    text: ClassVar[str] = "one GGUF file, for llama.cpp, Ollama and LM Studio (Llama, Mistral, Qwen2; Qwen3, Olmo)"

    vocabulary: Vocabulary | None = None

    def can(self, policy: Policy, source: Source) -> list[str]:
        """See `Target.can`."""
        reasons = [f"GGUF has no {choice}" for choice in named_choices(policy, CHOICES)]
        if unfit := model_reasons(source.model):
            return reasons + unfit
        blocks = blocks_of(policy, len(decoder_layers(source.model)))
        if not blocks:
            return [*reasons, "no layer is left"]
        if not self.options.zero:
            reasons += [f"{line}, which --no-zero forbids" for line in written_zeros(blocks)]
        architecture = architecture_of(source.model, blocks)
        unread = unread_tensors(source.model, blocks, architecture)
        if unread and architecture is DECI:
            needed = [*named_choices(policy, ("skip_layer",)), *unreadable(source.model)]
            for what in needed or [text_config(source.model).model_type]:
                reasons.append(f"{what} needs llama.cpp's architecture deci, which has no {', '.join(unread)}")
        elif unread:
            reasons.append(f"llama.cpp's architecture {architecture.name} has no {', '.join(unread)}")
        return reasons

    def write(self, policy: Policy, source: Source, folder: Path) -> list[str]:
        """See `Target.write`.

        Raises:
            ExportError: the package gguf is missing.
        """
        require_gguf()
        total = len(decoder_layers(source.model))
        blocks = blocks_of(policy, total)
        architecture = architecture_of(source.model, blocks)
        notes = [f"layers: {total} -> {len(blocks)}, written as llama.cpp's architecture {architecture.name}"]
        notes += written_zeros(blocks)
        notes += self.read_vocabulary(source)
        title = Path(source.id or type(source.model).__name__).name
        write_file(source.model, blocks, architecture, self.vocabulary, title, folder / FILE)
        if source.model.config is not text_config(source.model):
            notes.append(
                "the language model alone, compared on text; the vision part is unchanged, and llama.cpp's "
                "convert_hf_to_gguf.py --mmproj writes it"
            )
        proof = "llama.cpp ran the file" if has_llama(self.options.python) else (
            "llama.cpp did not run: the file was read back into transformers; install llama-cpp-python, or name an "
            "environment that has it with --python, and the proof runs llama.cpp and its tokenizer"
        )  # fmt: skip
        return [*notes, f"proof: {proof}"]

    def read_vocabulary(self, source: Source) -> list[str]:
        """Take the tokenizer of the source; the notes say what of it the file lacks."""
        self.vocabulary = None
        tokenizer = getattr(source.processor, "tokenizer", source.processor)
        if tokenizer is None:
            return ["no tokenizer was given: the file takes and gives numbers of tokens"]
        try:
            self.vocabulary = vocabulary_of(tokenizer, embedding_rows(source.model))
        except NoVocabulary as reason:
            return [f"no tokenizer: {reason}; the file takes and gives numbers of tokens"]
        rules = self.vocabulary.rules
        return [f"tokenizer: {rules.model}, {rules.pre}", *rules.notes]

    def check(self, folder: Path, reference: Reference) -> float:
        """See `Target.check`; llama.cpp also tokenizes some texts, where `write` wrote a tokenizer."""
        if has_llama(self.options.python):
            texts = self.vocabulary.texts if self.vocabulary else {}
            return run_llama(folder / FILE, reference, texts, self.options.python)
        if self.options.python is not None:
            hint = f"{self.options.python} -m pip install llama-cpp-python"
            raise ExportError("llama.cpp is not in this environment", [f"{self.options.python} has no llama_cpp"], hint)
        return read_back(folder / FILE, reference)

    def load_lines(self, source: Source, folder: str) -> list[str]:
        """See `Target.load_lines`."""
        return [f"llama-cli -m {folder}/{FILE}"]


def require_gguf() -> None:
    """Check that the package which writes the files is there.

    Raises:
        ExportError: it is missing.
    """
    try:
        import gguf  # noqa: F401
    except ImportError as cause:
        found = ["the package gguf is not installed"]
        raise ExportError("GGUF files cannot be written here", found, "pip install 'skipsearch[gguf]'") from cause
