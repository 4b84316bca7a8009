"""Dispatch: questions with the skill that each needs, for training and measuring the classification expert.

Questions with a skill are those that the seen tasks' experts learn from: the *training* splits of those tasks, loaded by name, so that
their own rules decide what training data is. Questions that none of the skills fits (`others`) are creative ones of Dolly.
"""

import random

import datasets

from t2eval.environment.documents import check_rows, content_hash, question_of
from t2eval.environment.environment import Environment, make_task_manager
from t2eval.errors import T2Error
from t2eval.strategies.dispatch import paper_format, parse_label

SEED = 16
OTHERS = "others"
OTHERS_DATA_SET = "databricks/databricks-dolly-15k"
OTHERS_CATEGORIES = ("brainstorming", "creative_writing")
SPLITS = ("train", "validation", "test")
HELD_OUT = 5
"""One question in so many is for validation, and as many are for the test."""


def load(tasks, per_label, **_):
    """The splits, from `dataset_kwargs` of the YAML.

    Args:
        tasks: the seen tasks, one a skill.
        per_label: at most so many questions of each label. All labels get as many as the rarest has.
    """
    environments = [Environment(task, task_manager=make_task_manager(task=task)) for task in tasks]
    skills = {environment.t2["label"]: environment.t2["description"] for environment in environments}
    questions = {environment.t2["label"]: _questions(environment) for environment in environments} | {OTHERS: _others()}
    count = min(per_label, *(len(texts) for texts in questions.values()))
    form = paper_format(skills, OTHERS)
    splits = {split: [] for split in SPLITS}
    for label, texts in questions.items():
        chosen = random.Random(f"{SEED} {label}").sample(texts, count)
        for split, part in _cut(chosen).items():
            splits[split] += [_row(form, question, label) for question in part]
    for split, rows in splits.items():
        random.Random(f"{SEED} {split}").shuffle(rows)
    return {split: datasets.Dataset.from_list(rows) for split, rows in splits.items()}


def _questions(environment):
    """Distinct training questions of a seen task, without what its prompts put around them: what the first pass will see."""
    return _distinct([question_of(environment.task, example.doc) for example in environment.examples("train")])


def _others():
    rows = datasets.load_dataset(OTHERS_DATA_SET, split="train")
    check_rows(rows, OTHERS_DATA_SET, "train", _problem)
    return _distinct([row["instruction"].strip() for row in rows if row["category"] in OTHERS_CATEGORIES and not row["context"]])


def _problem(row):
    """What is wrong with a row of Dolly, or None."""
    for field in ("instruction", "category"):
        if not isinstance(row.get(field), str) or not row[field].strip():
            return f"its {field} is empty"
    return None


def _distinct(texts):
    return list({content_hash(text): text for text in texts}.values())


def _cut(questions):
    """Three parts of one list: apart, because the list has no question twice."""
    held_out = len(questions) // HELD_OUT
    if not held_out:
        raise T2Error(f"t2_dispatch needs at least {HELD_OUT} questions a label, and has {len(questions)}: a data set is too small.")
    train = len(questions) - 2 * held_out
    return dict(zip(SPLITS, (questions[:train], questions[train:-held_out], questions[-held_out:]), strict=True))


def _row(form, question, label):
    text = form.others if label == OTHERS else form.labels[label]
    prompt = form.template.replace("{question}", question)
    return {"question": question, "label": label, "labels": [*form.labels, OTHERS], "prompt": prompt, "answer": (form.lead + text).strip()}


def extract(resps, docs):
    """lm-eval's custom filter: the label that each answer names, by the rule of the strategies; `[invalid]` where it names none."""
    return [[parse_label(answer, doc["labels"]) or "[invalid]" for answer in answers] for answers, doc in zip(resps, docs, strict=True)]


def grade(doc, results):
    """1 if the named label is the question's."""
    return {"exact_match": float(results[0] == doc["label"])}
