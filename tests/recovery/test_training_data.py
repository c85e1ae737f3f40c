"""Training data: what the files hold, and all of their mistakes by line."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from skipsearch.policies.errors import TrainingDataError
from skipsearch.recovery.chat import chat_template
from skipsearch.recovery.examples import Example, read_examples

PICTURE = "a.png"
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)


class Processor:
    """A tokenizer with a chat template."""

    chat_template = "of the model"

    def apply_chat_template(self, messages, tokenize, add_generation_prompt):
        text = "".join(f"<{m['role']}>{m['content']}</s>" for m in messages)
        return text + ("<assistant>" if add_generation_prompt else "")


class ImageProcessor(Processor):
    """A processor of images, whose content is in parts."""

    tokenizer = None

    def apply_chat_template(self, messages, **options):
        for message in messages:
            message["content"] = "".join(part.get("text", "[IMG]") for part in message["content"])
        return super().apply_chat_template(messages, **options)


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / PICTURE)
    return tmp_path


def read(folder, text, placeholder="[IMG]", processor=None):
    (folder / "data.json").write_text(text)
    return read_examples(folder / "data.json", folder, placeholder, chat_template(processor))


def test_lines_of_prompt_and_answer_are_taken_as_they_are(folder):
    rows = [{"prompt": "2 + 2 =", "answer": " 4"}, {"prompt": "<image> what?", "answer": "a cat", "image": PICTURE}]
    text = json.dumps(rows[0]) + "\n\n" + json.dumps(rows[1])
    assert read(folder, text) == [
        Example("2 + 2 =", " 4", (), 1),
        Example("[IMG] what?", "a cat", (folder / PICTURE,), 3),
    ]


def test_each_answer_of_a_conversation_is_an_example_after_all_that_was_said(folder):
    turns = [("human", "<image>\nWhat is it?"), ("gpt", "A cat."), ("human", "Sure?"), ("gpt", "Yes.")]
    row = {"image": PICTURE, "conversations": [{"from": who, "value": text} for who, text in turns]}
    first = "<user>[IMG]What is it?</s><assistant>"
    second = "<user>[IMG]What is it?</s><assistant>A cat.</s><user>Sure?</s><assistant>"
    wanted = [Example(first, "A cat.</s>", (folder / PICTURE,), 3), Example(second, "Yes.</s>", (folder / PICTURE,), 3)]
    assert read(folder, f"[\n\n{json.dumps(row)}\n]", processor=ImageProcessor()) == wanted


def test_every_mistake_is_listed_with_its_line(folder):
    (folder / "broken.png").write_text("no picture")
    good = {"prompt": "p", "answer": "a"}
    rows = [
        good,
        {"prompt": "p", "answer": " "},
        {"question": "p", "answer": "a"},
        {**good, "image": "missing.png"},
        {**good, "image": "broken.png"},
        {**good, "image": PICTURE},
        [1],
        {"conversations": [{"from": "human", "value": "hi"}]},
        {"conversations": [{"from": "me", "value": "hi"}]},
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": ""}]},
    ]
    with pytest.raises(TrainingDataError) as error:
        read(folder, "\n".join([*map(json.dumps, rows), "{"]), processor=Processor())
    assert list(error.value.details) == [
        "line 2: answer: found an empty text",
        "line 3: found the keys answer, question; expected prompt and answer, or conversations",
        f"line 4: image {folder / 'missing.png'} does not exist",
        f"line 5: image {folder / 'broken.png'} cannot be read as a picture",
        "line 6: found 1 images and 0 times <image> in the prompt",
        "line 7: found list, expected an object",
        "line 8: found turns of user, expected human and gpt in turn, gpt last",
        "line 9: turn 0: found from: 'me', expected human, user, gpt, assistant, system",
        "line 10: turn 1, gpt: found an empty text",
        "line 11: no JSON: Expecting property name enclosed in double quotes in column 2",
    ]


@pytest.mark.parametrize(
    ("text", "placeholder", "problem"),
    [
        ("", None, "found no rows"),
        ('[{"prompt": "p", "answer": "a"}', None, "line 1: found the end of the file, expected ]"),
        ('[\n{"prompt": "p"\n}, {"a": }]', None, "line 2: found the keys prompt; expected"),
        ('{"prompt": "<image>", "answer": "a", "image": "a.png"}', None, "found an image, and the model takes none"),
        ('{"messages": [{"role": "user", "content": "hi"}]}', None, "the model has no chat template"),
    ],
)  # fmt: skip
def test_what_a_file_or_a_model_lacks_is_named(folder, text, placeholder, problem):
    with pytest.raises(TrainingDataError) as error:
        read(folder, text, placeholder)
    assert any(problem in line for line in error.value.details)


def test_a_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(TrainingDataError, match="cannot be read"):
        read_examples(tmp_path / "none.json", tmp_path, None, None)
