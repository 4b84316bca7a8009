"""VQA accuracy: how far an answer agrees with the (usually ten) answers that people gave, after the VQA challenge's normalisation.

Leave one person out, and score min(matches among the others / 3, 1); the accuracy is the mean of that over all persons. As a metric of
`evaluate`, without the hub:

    metric = evaluate.load("<folder of t2eval>/grading/metrics/vqa_accuracy.py")
    metric.compute(predictions=["a dog"], references=[["dog"] * 8 + ["puppy"] * 2])

In the YAML of a task whose documents have a field `answers`: `process_results: !function t2eval.grading.vqa_accuracy.grade`.

The normalisation has the challenge's rules, with these differences:

1. Both sides are always normalised. The challenge's program leaves them alone where all ten answers are the same, so that "Dog" would be
   wrong against ten times "dog".
2. Where the normalisation leaves nothing, an answer of articles ("a", where a picture asks for a letter) is compared by them, and any
   other matches nothing. There, an empty answer and every article are right where people answered "a".
3. Its table of contractions has entries that can never match (with capitals), and lacks some (`shes`). Ours is made of regular parts.
   As there, words that mean something without the apostrophe (`its`, `well`, `ill`, `hell`, `shell`, `were`, `id`, `wed`) stay.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from t2eval.errors import T2Error

NAME = "vqa_accuracy"
_ENOUGH = 3
_ARTICLES = frozenset({"a", "an", "the"})
_NUMBERS = {word: str(value) for value, word in enumerate("zero one two three four five six seven eight nine ten".split())} | {"none": "0"}
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
# A full stop goes unless a figure follows: 1.5 and .5 keep theirs, "u.s." and "5." lose them.
_FULL_STOP = re.compile(r"\.(?!\d)")
_COMMA_IN_NUMBER = re.compile(r"\d,\d")


def _contractions() -> dict[str, str]:
    """Contraction without (all of) its apostrophes → with them."""
    negated = "ai are ca could did does do had has have is might must need ought sha should was were wo would".split()
    table = {f"{verb}nt": f"{verb}n't" for verb in negated}
    for verb in "could had might must should would".split():
        whole = f"{verb}n't've"
        table |= {f"{verb}ntve": whole, f"{verb}nt've": whole, f"{verb}n'tve": whole}
    people = "somebody someone something everybody everyone nobody".split()
    endings = {
        "ve": "could i might must not should there they we what where who would you".split(),
        "ll": ["it", "that", "they", "what", "who", "why", "you", *people],
        "re": "there they what who why you".split(),
        "s": ["he", "here", "how", "let", "she", "that", "there", "what", "when", "where", "who", "why", *people],
        "d": ["he", "how", "it", "there", "they", "where", "who", "why", "you", *people],
        "m": ["i"],
    }
    for ending, words in endings.items():
        table |= {f"{word}{ending}": f"{word}'{ending}" for word in words}
    for word in ["he", "i", "it", "she", "there", "they", "we", "who", "you", *people]:
        whole = f"{word}'d've"
        table |= {f"{word}dve": whole, f"{word}d've": whole, f"{word}'dve": whole}
    table |= {"maam": "ma'am", "oclock": "o'clock", "twas": "'twas", "yall": "y'all", "yallll": "y'all'll", "yall'll": "y'all'll"}
    return table | {f"y{middle}": "y'all'd've" for middle in ("alldve", "alld've", "all'd've", "'alld've", "'all'dve")}


_CONTRACTIONS = _contractions()


@lru_cache(maxsize=65_536)
def normalise(answer: str) -> str:
    """An answer in the form in which answers are compared.

    In this order: line ends and tabs become spaces; each mark of punctuation goes without a trace where it stands beside a space, or where
    the answer has a comma inside a number, and else becomes a space; full stops go, unless a figure follows; all becomes lower-case; number
    words from zero to ten, and `none`, become figures; articles go; contractions get their apostrophes; spaces become single ones.

    Examples:
        >>> normalise("The two dogs, dont bark!")
        "2 dogs don't bark"
    """
    text = answer.replace("\n", " ").replace("\t", " ").strip()
    joined = bool(_COMMA_IN_NUMBER.search(text))
    kept = text
    for mark in _MARKS:
        beside_space = f"{mark} " in text or f" {mark}" in text
        kept = kept.replace(mark, "" if beside_space or joined else " ")
    words = _FULL_STOP.sub("", kept).lower().split()
    figures = [_NUMBERS.get(word, word) for word in words]
    return " ".join(_CONTRACTIONS.get(word, word) for word in figures if word not in _ARTICLES)


def _compared(answer: str) -> str:
    """What of an answer is compared: its normal form, or the articles that it is made of; empty where it has no word."""
    if form := normalise(answer):
        return form
    words = re.findall(r"\w+", answer.lower())
    return " ".join(words) if set(words) <= _ARTICLES else ""


def accuracy(prediction: str, answers: Sequence[str]) -> float:
    """VQA accuracy of one prediction, 0 to 1.

    Args:
        prediction: the model's answer.
        answers: what people answered. Each is left out in turn, so three answers or fewer cannot give 1 (three alike: 2/3).

    Raises:
        T2Error: there are no answers to compare with, as in a test split whose answers are hidden.
    """
    if not answers:
        raise T2Error("VQA accuracy needs the answers that people gave, and this question has none. Hidden answers cannot be scored here.")
    said = _compared(prediction)
    matches = [bool(said) and _compared(answer) == said for answer in answers]
    total = sum(matches)
    return sum(min((total - own) / _ENOUGH, 1.0) for own in matches) / len(answers)


def grade(doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, float]:
    """lm-eval's `process_results`: the accuracy of a document's first answer by its field `answers`."""
    found = results[0]
    return {NAME: accuracy(found if isinstance(found, str) else found[0], doc["answers"])}


def modal(answers: Sequence[str]) -> str:
    """The answer that most people gave (the first of them), as it was written: what supervised training learns.

    One without a word only where there is no other.
    """
    same = [_compared(answer) for answer in answers]
    return answers[max(range(len(answers)), key=lambda place: (bool(same[place]), same.count(same[place]), -place))]
