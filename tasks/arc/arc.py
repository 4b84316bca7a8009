"""ARC: rows of allenai/ai2_arc with whatever option labels they have, and the option that an answer names."""

import re

from t2eval.environment.documents import load_documents

DATA_SET = "allenai/ai2_arc"
INVALID = "[invalid]"
"""What the filter gives where an answer names no option."""


def load(configuration, splits, **_):
    """The splits of one configuration, from `dataset_kwargs` of the YAML."""
    found = load_documents(DATA_SET, configuration, splits=splits, problem=problem, content=content)
    return {split: rows.add_column("asked", [asked(row) for row in rows]) for split, rows in found.items()}


def problem(row):
    """What is wrong with a row, or None."""
    question, key = row.get("question"), row.get("answerKey")
    choices = row.get("choices") or {}
    texts, labels = choices.get("text") or [], choices.get("label") or []
    if not isinstance(question, str) or not question.strip():
        return "its question is empty"
    if len(texts) != len(labels) or len(labels) < 2:
        return f"it has {len(texts)} option texts and {len(labels)} labels"
    if not all(isinstance(text, str) and text.strip() for text in texts):
        return "one of its options is empty"
    if len(set(labels)) < len(labels):
        return f"its option labels repeat: {', '.join(map(str, labels))}"
    if key not in labels:
        return f"its answerKey {key!r} is not one of its option labels {', '.join(map(str, labels))}"
    return None


def content(row):
    """What a row asks: the question and its options, in any order."""
    return "\n".join([row["question"], *sorted(row["choices"]["text"])])


def asked(row):
    """A row's question and its options, each with its own label."""
    choices = row["choices"]
    options = [f"{label}. {text}" for label, text in zip(choices["label"], choices["text"], strict=True)]
    return "\n".join([row["question"], "Options:", *options])


def named_label(answer, labels):
    """The option that an answer names, by three rules in turn: "answer is (X)", "Answer: X", the last label that stands alone.

    The first two take the first place that fits. None where no rule does: there is no guess.
    """
    label = "(" + "|".join(re.escape(name) for name in sorted(labels, key=len, reverse=True)) + ")"
    for pattern in (rf"answer is \(?{label}\b", rf"[aA]nswer:\s*{label}\b"):
        if found := re.search(pattern, answer):
            return found.group(1)
    alone = re.findall(rf"\b{label}\b", answer)
    return alone[-1] if alone else None


def extract(resps, docs):
    """lm-eval's custom filter: each answer as the label that it names."""
    return [
        [named_label(answer, doc["choices"]["label"]) or INVALID for answer in answers] for answers, doc in zip(resps, docs, strict=True)
    ]


def grade(doc, results):
    """1 if the named label is the right one."""
    return {"exact_match": float(results[0] == doc["answerKey"])}
