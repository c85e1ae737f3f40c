"""The chat template of a model, which makes one text of the turns of a conversation."""

from collections.abc import Sequence
from typing import Any

import jinja2

from .examples import PLACEHOLDER, Problem, Template


def chat_template(processor: Any) -> Template | None:
    """The chat template of a processor or tokenizer; None where it has none."""
    if getattr(processor, "chat_template", None) is None:
        return None
    takes_parts = hasattr(processor, "tokenizer")  # processors of images want the content of a turn in parts

    def template(turns: Sequence[tuple[str, str]]) -> str:
        messages = [{"role": role, "content": parts(text) if takes_parts else text} for role, text in turns]
        try:
            text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=turns[-1][0] == "user")
        except (jinja2.TemplateError, ValueError, TypeError) as cause:
            raise Problem(f"the model's chat template refuses it: {cause}") from cause
        return str(text)

    return template


def parts(text: str) -> list[dict[str, str]]:
    """The content of a turn: its images, and the texts between them."""
    found: list[dict[str, str]] = []
    for number, piece in enumerate(text.split(PLACEHOLDER)):
        found += [{"type": "image"}] if number else []
        found += [{"type": "text", "text": piece.strip()}] if piece.strip() else []
    return found
