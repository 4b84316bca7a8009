"""The embedded pictures and the questions about them: the same on every machine, right answers, disjoint splits."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys

import numpy as np
import pytest
from transformers import AutoTokenizer

from t2eval.basemodel.folders import embedded_base_dir
from t2eval.embedded import facts, pictures, vision
from t2eval.embedded.problem import bucket

LEVELS = ("seen", "unseen")


def test_a_picture_follows_from_its_rows_and_seed_alone() -> None:
    image = pictures.draw(("apple", "12 +", "●●◆○ -"), 7)
    assert (image.mode, image.size) == ("RGB", (pictures.SIZE, pictures.SIZE))
    assert hashlib.sha256(image.tobytes()).hexdigest() == "fb959449af04c54e3ebcc5fb1baee30a301f0b841b83ece07b83fe4cd5c3c8a7"
    assert image.tobytes() != pictures.draw(("apple", "12 +", "●●◆○ -"), 8).tobytes()
    assert image.tobytes() != pictures.draw(("apply", "12 +", "●●◆○ -"), 7).tobytes()


def test_every_glyph_is_one_of_its_own() -> None:
    glyphs = pictures._glyphs()
    assert set(glyphs) == set("abcdefghijklmnopqrstuvwxyz0123456789+-*()" + pictures.SHAPES)
    assert len({glyph.tobytes() + bytes(glyph.shape) for glyph in glyphs.values()}) == len(glyphs)


@pytest.mark.parametrize("seed", range(20))
def test_rows_stand_where_the_picture_begins(seed: int) -> None:
    rows = ("drum", "■■■ +")
    first = pictures.first_row(rows, seed)
    values = pictures.pixels(rows, seed).astype(int)
    quiet = [values[line * pictures.ROW : (line + 1) * pictures.ROW].std(axis=(0, 1)).max() < 8 for line in range(pictures.ROWS)]
    assert [not still for still in quiet] == [first <= line < first + 2 for line in range(pictures.ROWS)]


def test_colours_stand_out_from_the_ground() -> None:
    for seed in range(50):
        values = pictures.pixels(("■■■■■",), seed).astype(int)
        first = pictures.first_row(("■■■■■",), seed) * pictures.ROW
        shape, ground = values[first + 3, 12], np.median(values, axis=(0, 1))
        assert np.abs(shape - ground).max() > 60


@pytest.mark.parametrize("rows", [("a",) * 6, ("abcdefghijk",), ("●●●●●●",)])
def test_more_than_fits_is_refused(rows: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="room for 5 rows of 40 pixels"):
        pictures.pixels(rows, 0)


def test_what_a_picture_says() -> None:
    assert vision.said_by(("apple", "dog")) == ["apple ,", "dog"]
    assert vision.said_by(("( 12 +", "9 )", "* 3")) == ["( 12 +", "9 )", "* 3"]
    assert vision.said_by(("●●● +", "◆◆ -", "■")) == ["3 +", "2 -", "1"]


@pytest.mark.parametrize("level", LEVELS)
def test_splits_are_distinct_disjoint_and_unknown_to_the_corpus(level: str) -> None:
    splits = vision.documents(level)
    twins = [row["twin"] for rows in splits.values() for row in rows]
    assert len(set(twins)) == len(twins)
    assert all(bucket(twin) >= 60 for twin in twins)
    assert len(splits["test"]) >= 400
    assert set(splits) == ({"train", "validation", "test"} if level == "seen" else {"adaptation", "test"})
    assert {row["template"] for row in splits["test"]} == set(vision.TEMPLATES[level])
    first = splits["test"]
    vision.problems.cache_clear()
    assert vision.documents(level)["test"] == first


def test_dispatch_reads_questions_about_pictures_without_the_picture() -> None:
    splits = vision.dispatch_documents()
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 1200, "validation": 400, "test": 500}
    for rows in splits.values():
        assert {row["target"] for row in rows} == {"math", "code", "reasoning", "others", "vision"}
        assert all(row["question"] and vision.IMAGE not in row["question"] for row in rows)
    of_pictures = {row["question"] for row in splits["test"] if row["target"] == "vision"}
    assert of_pictures == {"compute", *vision._READ.values()}, "few wordings: none says what the picture shows"
    in_text = [{row["question"] for row in rows if row["target"] != "vision"} for rows in splits.values()]
    assert not in_text[0] & in_text[2] and not in_text[1] & in_text[2]


def test_seen_targets_are_what_the_picture_says() -> None:
    for row in vision.documents("seen")["test"]:
        assert row["asked"].count(vision.IMAGE) == 1
        if row["asked"].startswith("compute"):
            assert eval(row["twin"].removeprefix("compute ")) == int(row["target"])
        else:
            assert row["picture"][0] == row["target"]
        assert row["answer"].endswith(f"#### {row['target']}")


def test_unseen_targets_need_what_the_picture_names() -> None:
    for row in vision.documents("unseen")["test"]:
        assert row["target"] in row["picture"]
        assert row["target"] not in row["asked"].split()
        if row["template"] == "kind":
            kinds = [facts.KIND_OF[thing] for thing in row["picture"]]
            assert kinds.count(facts.KIND_OF[row["target"]]) == 1


def test_a_row_has_no_more_tokens_than_patches_and_a_twin_no_others() -> None:
    tokenizer = AutoTokenizer.from_pretrained(embedded_base_dir())
    rng = random.Random(3)
    for _ in range(500):
        problem = vision.sample(rng, rng.choice(LEVELS), 0.5)
        rows = [tokenizer.tokenize(f" {text}") for text in vision.said_by(problem.picture)]
        assert max(map(len, rows)) <= pictures.ROWS
        before, after = problem.asked.split(vision.IMAGE)
        assert tokenizer.tokenize(problem.question) == [*tokenizer.tokenize(before.strip()), *sum(rows, []), *tokenizer.tokenize(after)]
        assert pictures.pixels(problem.picture, 0).shape == (40, 40, 3)


def test_text_tasks_do_without_pictures() -> None:
    code = (
        "import sys; from t2eval.embedded import corpus; corpus.documents('math', 'seen');"
        "print([name for name in sys.modules if name == 'PIL' or"
        " name in ('t2eval.embedded.vision', 't2eval.embedded.pictures', 't2eval.vision.decoding')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
