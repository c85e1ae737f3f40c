"""The accuracy of the VQA challenge (Antol et al. 2015, arXiv:1505.00468), for TextVQA and VQAv2.

lm-eval imports this file by its path, so it imports nothing of ours.
"""

import re
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

AGREEING = 3  # An answer that this many people gave is fully right.
MARKS = ';/[]"{}()=+\\_-><@`,?!'
DECIMAL_COMMA = re.compile(r"\d,\d")
LONE_PERIOD = re.compile(r"\.(?!\d)")
ARTICLES = {"a", "an", "the"}
NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6",
    "seven": "7", "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
# Words that take an ending after an apostrophe. Words that are another word without it, such as "well", are left out.
ENDINGS = {
    "n't": "ain't aren't can't couldn't didn't doesn't don't hadn't hasn't haven't isn't mightn't mustn't needn't "
    "oughtn't shan't shouldn't wasn't weren't won't wouldn't",
    "'ve": "could've i've might've must've not've should've they've we've what've where've who've would've you've",
    "'d": "he'd how'd it'd there'd they'd where'd who'd you'd",
    "'ll": "how'll it'll somebody'll someone'll something'll they'll what'll who'll why'll y'all you'll",
    "'s": "he's how's somebody's someone's that's there's what's when's where's who's why's let's",
    "'re": "there're they're what're why're you're",
    "'": "i'm ma'am o'clock 'twas",
}
CONTRACTIONS = {word.replace("'", ""): word for words in ENDINGS.values() for word in words.split()}


def vqa_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """The VQA accuracy of one answer."""
    return {"vqa_accuracy": vqa_accuracy(results[0], people_answers(doc))}


def people_answers(doc: Mapping[str, Any]) -> list[str]:
    """What ten people answered; TextVQA has texts, VQAv2 mappings."""
    return [answer["answer"] if isinstance(answer, Mapping) else answer for answer in doc["answers"]]


def common_answer(doc: Mapping[str, Any]) -> str:
    """The answer that most people gave; of equally frequent ones the first."""
    answers = people_answers(doc)
    return max(answers, key=answers.count)


def vqa_accuracy(said: str, answers: Sequence[str]) -> float:
    """How far people agree with an answer, 0 to 1.

    For each person left out, a third for each of the others that gave the answer, at most 1; the mean over all.
    """
    text, others = normalised(said), [normalised(answer) for answer in answers]
    same = [answer == text for answer in others]
    return fmean(min((sum(same) - own) / AGREEING, 1.0) for own in same)


def normalised(text: str) -> str:
    """A text without punctuation and articles, in lower case, with digits for numbers and whole contractions."""
    text = text.replace("\n", " ").replace("\t", " ").strip()
    joins = bool(DECIMAL_COMMA.search(text))
    for mark in MARKS:
        if mark in text:
            beside_space = f"{mark} " in text or f" {mark}" in text
            text = text.replace(mark, "" if joins or beside_space else " ")
    words = LONE_PERIOD.sub("", text).lower().split()
    numbered = [NUMBERS.get(word, word) for word in words]
    return " ".join(CONTRACTIONS.get(word, word) for word in numbered if word not in ARTICLES)
