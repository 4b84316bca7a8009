import json
import re
from dataclasses import replace

import pytest
from click.testing import CliRunner

from t2eval import cli
from t2eval.errors import T2Error
from t2eval.leaderboard.report import LATENT_SKILL
from t2eval.paper import lab as lab_module
from t2eval.paper import report, style
from t2eval.paper.item import item
from t2eval.paper.lab import Lab
from t2eval.paper.markdown import NONE, beside, score, table


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_ours_and_the_papers_are_never_in_one_column(lab):
    for name in ("table1", "table2", "table4", "table7"):
        entry = item(name)
        text = report.render(entry, entry.run(lab), lab)
        lines = [cells(line) for line in text.splitlines() if line.startswith("|")]
        heads = lines[0]
        assert all(head.startswith(("ours: ", "paper, Llama-3-8B-Instruct: ")) for head in heads[1:])
        papers = {figure for column in entry.reported.columns.values() for figure in column.values()}
        for line in lines[2:]:
            if len(line) != len(heads):
                break
            for head, cell in zip(heads[1:], line[1:], strict=True):
                assert (cell in papers or cell == NONE) if head.startswith("paper") else cell not in papers - {NONE}
        for slip in entry.reported.slips:
            assert f"A slip in the paper: {slip}" in text


def test_a_table_has_every_label_once():
    made = table(beside({"x": {"a": "1", "b": "2"}}, {"y": {"b": "3", "c": "4"}}, "M"))
    assert made.splitlines() == ["|  | ours: x | paper, M: y |", "| --- | ---: | ---: |", "| a | 1 | – |", "| b | 2 | 3 |", "| c | – | 4 |"]
    assert score({"score": 0.25, "stderr": 0.01}) == "0.250 ± 0.010"
    assert score({"score": 0.25, "stderr": None}) == "0.250"
    assert score({"score": None}) == NONE


def test_the_report_goes_item_by_item(lab):
    chosen = [item(name) for name in ("table1", "table3", "figure6")]
    done = report.run_all(lab, chosen)
    text = (lab.output / "REPORT.md").read_text()
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## Contents"] + [
        f"## {name}. {entry.title}" for name, entry in zip(("Table 1", "Table 3", "Figure 6"), chosen, strict=True)
    ]
    assert LATENT_SKILL in text
    assert "](figure6/figure.png)" in text
    assert re.search(r"\n- Commit ([0-9a-f]{12}(\+changes)?|unknown)\.\n- Versions: t2eval \d", text)
    assert text.count(lab.preset.describe()[1:]) == 1
    assert "torch 2" in text and "lm_eval 0" in text
    assert "Not finished yet" not in text
    supported = sum(claim.verdict == "supported" for claim in done[0].result.claims)
    assert f"| [Table 1](#table1). {chosen[0].title} | {supported} | " in text
    links = re.findall(r"\]\(#(\w+)\)", text)
    assert set(links) == {"table1", "table3", "figure6", "contents"}
    assert all(f'<a id="{link}"></a>' in text for link in links if link != "contents")
    supported_in_all = sum(claim.verdict == "supported" for entry in done for claim in entry.result.claims)
    assert f"| **all** | **{supported_in_all}** | " in text


def test_a_folder_that_cannot_be_written_is_one_message(lab):
    lab.output.joinpath("table3").write_text("in the way")
    with pytest.raises(T2Error, match=r"Could not write .*table3.*: .*Free some space"):
        report.run_item(item("table3"), lab)


def test_seconds_are_of_all_sessions(lab):
    chosen = [item("table3")]
    with lab.clock.running("table3"):
        lab.clock._running = "table3", lab.clock._running[1] - 100
    said = []
    lab.close()
    again = Lab(lab.output, lab.preset, workers=3, say=said.append)
    report.run_all(again, chosen)
    text = (lab.output / "REPORT.md").read_text()
    found = re.search(r"Computing took (\d+) s with 1 worker and \d+ s with 3 workers: wall time", text)
    assert found and 100 <= int(found[1]) < 110
    assert re.search(r"\[1/1\] table3 done in \d s \(1\d\d s in all sessions\)", said[-1])
    assert re.search(r"\| \[Table 3\]\(#table3\)\. .* \| 1\d\d \|$", text, re.MULTILINE)


def test_the_report_names_the_commit_and_versions_of_every_session(lab, monkeypatch):
    def session(commit, **others):
        lab.close()
        monkeypatch.setattr(lab_module, "git_commit", lambda: commit)
        monkeypatch.setattr(lab_module, "versions", lambda: {"t2eval": "1", "torch": "2.13", **others})
        return Lab(lab.output, lab.preset, say=lambda _: None)

    (lab.output / "sessions.json").write_text("[]")
    entries = [item("figure6")]
    for commit in ("a", "a"):
        report.run_all(session(commit), entries)
        assert "\n- Commit a.\n- Versions: t2eval 1, torch 2.13.\n" in (lab.output / "REPORT.md").read_text()
    assert len(json.loads((lab.output / "sessions.json").read_text())) == 1
    session("b", torch="2.12")
    report.run_all(session("a"), entries)
    text = (lab.output / "REPORT.md").read_text()
    assert "\n- Commits: b, a (the last one wrote this report).\n- Versions: t2eval 1, torch 2.13 (earlier: 2.12).\n" in text
    report.run_all(session(None), entries)
    assert "- Commits: b, a, unknown (the last one" in (lab.output / "REPORT.md").read_text()
    monkeypatch.setattr(report, "lost_commits", lambda commits: ["b", "a", "unknown"])
    report.run_all(session("a"), entries)  # its own one is named, whatever git says of it
    found = (lab.output / "REPORT.md").read_text()
    assert "- Commit a; 2 further ones, of earlier sessions, are not in the history any more.\n" in found
    monkeypatch.setattr(report, "lost_commits", lambda commits: [])
    (lab.output / "sessions.json").unlink()
    report.run_all(session("c"), entries)
    assert "- Commits: unknown, c (the last one" in (lab.output / "REPORT.md").read_text(), "earlier sessions did not say"


def test_an_interrupted_report_says_what_is_missing(lab):
    entries = [item("table3"), item("figure6")]
    done = report.run_all(lab, entries[:1])
    assert "Not finished yet: figure6. Run the same command again." in report.report(lab, done, entries)


def test_an_item_that_fails_is_named_and_the_others_go_on(lab):
    def broken(lab):
        raise T2Error("The second base is not there.")

    entries = [replace(item("table3"), run=broken), item("figure6")]
    done = report.run_all(lab, entries)
    assert [entry.error for entry in done] == ["The second base is not there.", None]
    text = (lab.output / "REPORT.md").read_text()
    assert "FAILED: table3: The second base is not there." in text
    assert "## Figure 6." in text


def test_an_error_that_nobody_foresaw_is_kept_and_the_others_go_on(lab):
    def broken(*_):
        raise KeyError("missing\nkey")

    said = []
    lab.say = said.append
    whole, drawn = item("table3"), item("figure4")
    done = report.run_all(
        lab, [replace(whole, run=broken), replace(drawn, run=item("table3").run, ours=whole.ours, draw=broken), item("figure6")]
    )
    lines = [f"KeyError: 'missing\\nkey' (traceback: {name}/error.txt)" for name in ("table3", "figure4")]
    assert [entry.error for entry in done] == [*lines, None]
    text = (lab.output / "REPORT.md").read_text()
    for name, line in zip(("table3", "figure4"), lines, strict=True):
        assert f"\nFAILED: {name}: {line}\n" in text
        trace = (lab.output / name / "error.txt").read_text()
        assert trace.startswith("Traceback") and "in broken" in trace
    assert "## Figure 6." in text and any(line.startswith("[1/3] table3 FAILED after 0 s: KeyError") for line in said)
    report.run_all(lab, [whole])
    assert not (lab.output / "table3" / "error.txt").exists()


def test_an_error_whose_traceback_cannot_be_written_is_named_too(lab):
    def broken(lab):
        raise ValueError("no data")

    lab.output.joinpath("table3").write_text("in the way")
    done = report.run_all(lab, [replace(item("table3"), run=broken), item("figure6")])
    assert done[0].error.startswith("ValueError: no data (its traceback could not be written: ") and done[1].error is None


def test_a_failed_item_gives_exit_code_1(tmp_path, fakes, monkeypatch):
    def broken(lab):
        raise ValueError("no data")

    entries = {"table3": replace(item("table3"), run=broken), "figure6": item("figure6")}
    monkeypatch.setattr("t2eval.paper.item.items", lambda: entries)
    result = invoke("all", "--output", tmp_path / "out", "--quick")
    assert result.exit_code == 1 and "2 items, 1 failed: table3." in result.stdout


def test_an_item_that_the_preset_cannot_run_is_left_out_by_name(lab):
    lab.preset = replace(lab.preset, vision=None)
    lines = []
    lab.say = lines.append
    done = report.run_all(lab, [item("figure5"), item("figure6")])
    assert [(entry.error, bool(entry.left_out)) for entry in done] == [(None, True), (None, False)]
    text = (lab.output / "REPORT.md").read_text()
    assert "Left out: figure5: The preset 'embedded' has no vision-language model" in text
    assert "FAILED" not in text and "## Figure 6." in text
    assert re.search(r"\| \[Figure 5\]\(#figure5\)\. .* \| – \| – \| – \| left out \|", text)
    assert not (lab.output / "figure5").exists()
    assert any(line.startswith("[1/2] figure5 left out: ") for line in lines)


def test_ctrl_c_ends_the_report(lab):
    def interrupted(lab):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise T2Error("Interrupted: 3 of 9 cells are done.") from None

    with pytest.raises(T2Error, match="Interrupted"):
        report.run_all(lab, [replace(item("table3"), run=interrupted), item("figure6")])
    assert not (lab.output / "figure6").exists()


def test_a_bare_ctrl_c_ends_the_report_too(lab):
    def interrupted(lab):
        raise KeyboardInterrupt

    def wrapped(lab):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise RuntimeError("a pool that was cut off") from error

    for run, kind in ((interrupted, KeyboardInterrupt), (wrapped, RuntimeError)):
        with pytest.raises(kind):
            report.run_all(lab, [replace(item("table3"), run=run), item("figure6")])
    assert not (lab.output / "figure6").exists()


def test_series_differ_without_colour():
    lines = [style.line(index) for index in range(7)]
    bars = [style.bar(index) for index in range(7)]
    for key in ("color", "linestyle", "marker"):
        assert len({str(line[key]) for line in lines}) == 7
    assert len({bar["hatch"] for bar in bars}) == 7


def test_a_picture_that_fails_leaves_nothing(tmp_path):
    def broken(figure):
        figure.subplots()
        raise ValueError("no data")

    with pytest.raises(ValueError, match="no data"):
        style.picture(tmp_path / "a.png", broken)
    assert list(tmp_path.iterdir()) == []
    style.picture(tmp_path / "a.png", lambda figure: figure.subplots().plot([1, 2]), size=(2, 1))
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def invoke(*arguments):
    return CliRunner().invoke(cli.main, ["paper", *map(str, arguments)])


def test_the_list():
    result = invoke("--list")
    assert result.exit_code == 0
    assert "table1    SVF and LoRA" in result.output
    assert {"name", "title", "measures"} == set(json.loads(invoke("--list", "--json").output)[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Which item?"),
        (["tabel1", "--output", "x"], "Did you mean 'table1'"),
        (["table1"], "Where to? `t2 paper table1 --output runs/paper`"),
        (["table1", "--output", "x", "--preset", "papre"], "Did you mean 'paper'"),
        (["table1", "--output", "x", "--preset", "paper", "--quick"], "--quick is a small form"),
    ],
)
def test_a_wrong_command_is_one_message(arguments, message):
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_the_command_writes_an_item(tmp_path, fakes):
    result = invoke("table3", "--output", tmp_path / "out", "--quick")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("## Table 3.")
    assert (tmp_path / "out" / "table3" / "table.md").read_text() in result.stdout
    again = invoke("table3", "--output", tmp_path / "out", "--quick", "--json")
    assert len(json.loads(again.stdout)["table3"]["rows"]) == 6
    other = invoke("table3", "--output", tmp_path / "out")
    assert other.exit_code == 2
    assert "Choose another --output" in other.stderr
