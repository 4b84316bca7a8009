"""t2_textvqa and t2_okvqa on hand-written rows with real image files, made here, offline."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from PIL import Image

from t2eval.basemodel.load import load_base
from t2eval.environment.environment import Environment
from t2eval.environment.plain import plain_model
from t2eval.errors import T2Error
from t2eval.paths import tasks_dir
from t2eval.vision import questions as vqa
from tests.offline_datasets import datasets_cache, write_dataset

TEXT, NUMBER, IMAGE = datasets.Value("string"), datasets.Value("int64"), datasets.Image()
TEXTVQA = {
    "image_id": TEXT,
    "question_id": NUMBER,
    "question": TEXT,
    "image": IMAGE,
    "answers": datasets.List(TEXT),
    "ocr_tokens": datasets.List(TEXT),
}
OKVQA = {"question_id": TEXT, "image": IMAGE, "question": TEXT, "answers": datasets.List(TEXT), "question_type": TEXT, "answer_type": TEXT}
COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}


def _file(kind: str, colour: str) -> bytes:
    """A real image file of one of the kinds that data sets have."""
    image = Image.new("RGB", {"pixel": (1, 1), "huge": (8000, 8000)}.get(kind, (60, 40)), COLOURS[colour])
    stream = io.BytesIO()
    if kind == "cut":
        image.save(stream, "JPEG")
        return stream.getvalue()[:300]
    if kind == "text":
        return b"<html>not found</html>"
    modes = {"cmyk": "CMYK", "grey": "L", "alpha": "RGBA"}
    if kind == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6
        image.save(stream, "JPEG", exif=exif)
    else:
        image.convert(modes.get(kind, "RGB")).save(stream, "JPEG" if kind in ("cmyk", "jpeg", "huge") else "PNG")
    return stream.getvalue()


KINDS = ("png", "jpeg", "cmyk", "grey", "alpha", "turned")


def _textvqa(split: str, count: int) -> list[dict[str, Any]]:
    """Two questions a picture."""
    return [
        {
            "image_id": f"{split}-{row // 2}",
            "question_id": 1000 + row,
            "question": f"what is the word on sign number {row}?",
            "image": {"bytes": _file(KINDS[row % len(KINDS)], "red"), "path": None},
            "answers": ["stop"] * 7 + ["Stop sign", "the stop", "halt"],
            "ocr_tokens": ["STOP"],
        }
        for row in range(count)
    ]


def _okvqa(count: int) -> list[dict[str, Any]]:
    """The first picture has two questions, the others one each."""
    return [
        {
            "question_id": f"{max(row - 1, 0) + 4000}{row % 10}",
            "image": {"bytes": _file(KINDS[row % len(KINDS)], "blue"), "path": None},
            "question": f"which fuel does vehicle {row} need?",
            "answers": ["gas"] * 6 + ["gasoline"] * 4,
            "question_type": "four",
            "answer_type": "other",
        }
        for row in range(count)
    ]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Writes splits of a hub data set where `load_dataset` finds them offline."""
    vqa._stored.cache_clear()

    def write(name: str, **splits: list[dict[str, Any]]) -> None:
        features = datasets.Features(TEXTVQA if name == "lmms-lab/textvqa" else OKVQA)
        write_dataset(tmp_path, name, "default", features, splits)

    with datasets_cache(tmp_path):
        yield write
    vqa._stored.cache_clear()


def _environment(name: str) -> Environment:
    manager = TaskManager(include_path=str(tasks_dir() / name.removeprefix("t2_")), include_defaults=False)
    return Environment(name, task_manager=manager)


def test_textvqa_is_cut_by_pictures(hub: Callable[..., None]) -> None:
    train = _textvqa("train", 80)
    train[0]["image_id"] = train[1]["image_id"] = "validation-0"  # a picture of the test
    hub("lmms-lab/textvqa", train=train, validation=_textvqa("validation", 12))
    task = _environment("t2_textvqa").task
    parts = {split: task.dataset[split] for split in ("train", "validation", "adaptation", "test")}
    assert {split: len(rows) for split, rows in parts.items()} == {"train": 66, "validation": 7, "adaptation": 3, "test": 12}
    pictures = {split: set(rows["picture"]) for split, rows in parts.items()}
    for split, names in pictures.items():
        assert all(names.isdisjoint(others) for other, others in pictures.items() if other != split)
    assert "validation-0" not in pictures["train"] | pictures["validation"] | pictures["adaptation"]
    assert "image" not in parts["test"].column_names


@pytest.mark.parametrize("name", ["t2_textvqa", "t2_okvqa"])
def test_prompt_picture_target_and_score(name: str, hub: Callable[..., None]) -> None:
    hub("lmms-lab/textvqa", train=_textvqa("train", 40), validation=_textvqa("validation", 12))
    hub("lmms-lab/OK-VQA", val2014=_okvqa(40))
    environment = _environment(name)
    examples = environment.examples("test", limit=6)
    question, right, other = (
        ("what is the word on sign number 0?", "stop", "halt")
        if name == "t2_textvqa"
        else ("which fuel does vehicle 0 need?", "gas", "petrol")
    )
    assert examples[0].prompt == f"<image>\n{question}\nAnswer with one word or a short phrase.\nAnswer:"
    assert examples[0].answer == f" {right}"
    assert environment.metric == "vqa_accuracy"
    assert environment.until == ["\n"]
    # stop: 8 of 10 with "the stop"; gas: 6 of 10; halt: 1 of 10; petrol: none
    scores = environment.score_many([(examples[0], f" {right.upper()}."), (examples[0], other)])
    assert scores == pytest.approx([1.0, 0.3 if other == "halt" else 0.0])
    for example in examples:
        (image,) = environment.task.doc_to_image(example.doc)
        assert image.mode == "RGB"
        assert image.size == ((40, 60) if example.doc["row"] % 6 == 5 else (60, 40))


def test_okvqa_holds_adaptation_examples_out_with_their_pictures(hub: Callable[..., None]) -> None:
    hub("lmms-lab/OK-VQA", val2014=_okvqa(40))
    environment = _environment("t2_okvqa")
    parts = {split: environment.task.dataset[split] for split in ("adaptation", "test")}
    assert {split: len(rows) for split, rows in parts.items()} == {"adaptation": 9, "test": 31}
    assert set(parts["adaptation"]["picture"]).isdisjoint(parts["test"]["picture"])
    assert list(parts["test"]["picture"]).count("4000") == 2
    assert environment.split_source("adaptation") == "adaptation"
    again = _environment("t2_okvqa").task.dataset["adaptation"]
    assert list(again["row"]) == list(parts["adaptation"]["row"])


@pytest.mark.parametrize(("kind", "why"), [("cut", "cannot be read whole"), ("text", "not an image file")])
def test_a_bad_picture_is_named_when_it_is_asked_for(kind: str, why: str, hub: Callable[..., None]) -> None:
    rows = _okvqa(12)
    rows[5]["image"] = {"bytes": _file(kind, "green"), "path": None}
    hub("lmms-lab/OK-VQA", val2014=rows)
    task = _environment("t2_okvqa").task
    doc = next(doc for split in ("adaptation", "test") for doc in task.dataset[split] if doc["row"] == 5)
    with pytest.raises(T2Error, match=rf"The picture of lmms-lab/OK-VQA, split 'val2014', row 5, cannot be used: .*{why}"):
        task.doc_to_image(doc)


@pytest.mark.parametrize("name", ["t2_textvqa", "t2_okvqa"])
def test_a_model_answers_about_every_kind_of_file(name: str, hub: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Through lm-eval and the embedded vision-language model."""
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda _results: None)
    kinds = (*KINDS, "pixel", "huge")
    rows = {"t2_textvqa": _textvqa("validation", len(kinds)), "t2_okvqa": _okvqa(40)}[name]
    for row in rows:
        kind = kinds[int(row["question_id"]) % 10 % len(kinds)]
        row["image"] = {"bytes": _file(kind if kind != "huge" or row in rows[:10] else "png", "red"), "path": None}
    write = {"train": _textvqa("train", 40), "validation": rows} if name == "t2_textvqa" else {"val2014": rows}
    hub("lmms-lab/textvqa" if name == "t2_textvqa" else "lmms-lab/OK-VQA", **write)
    manager = TaskManager(include_path=str(tasks_dir() / name.removeprefix("t2_")), include_defaults=False)
    lm = plain_model(*load_base("embedded-vlm"), batch_size=4)
    found = simple_evaluate(lm, tasks=[name], task_manager=manager, bootstrap_iters=0, limit=10, gen_kwargs="max_gen_toks=4")
    assert found is not None
    assert 0 <= found["results"][name]["vqa_accuracy,none"] <= 1
    samples = found["samples"][name]
    assert len(samples) == min(10, len(rows)) and all(isinstance(sample["resps"][0][0], str) for sample in samples)


@pytest.mark.parametrize(("change", "why"), [({"question": " "}, "has no question"), ({"answers": []}, "has no answers")])
def test_a_row_without_question_or_answers_is_named(change: dict[str, Any], why: str, hub: Callable[..., None]) -> None:
    rows = _okvqa(12)
    rows[3].update(change)
    hub("lmms-lab/OK-VQA", val2014=rows)
    with pytest.raises(T2Error, match=rf"lmms-lab/OK-VQA, split 'val2014', row 3, {why}"):
        _environment("t2_okvqa")


def test_slices_take_whole_pictures() -> None:
    rows = [{"picture": str(place // 3), "place": place} for place in range(30)]
    parts = vqa.slices(rows, {"one": 7, "two": 6, "rest": 100})
    assert {part: len(found) for part, found in parts.items()} == {"one": 7, "two": 6, "rest": 15}
    places = [row["place"] for found in parts.values() for row in found]
    assert len(set(places)) == len(places)
    names = [{row["picture"] for row in found} for found in parts.values()]
    assert not names[0] & names[1] and not names[0] & names[2] and not names[1] & names[2]
