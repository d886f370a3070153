"""What a report says, without a browser: every figure, escaped text, several runs, atomic writing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
from report_samples import results, retrieval, rich, several, with_classes

from everlearn import report
from everlearn.comparison_table import compare_table
from everlearn.console import WIDTH
from everlearn.errors import EverlearnError
from everlearn.judgement import beside_joint, judge
from everlearn.metrics import FORMULAS
from everlearn.report import figures, heatmap, markup
from everlearn.report import several as compared
from everlearn.run_table import final_table


def text_of(page: str) -> str:
    """What a reader sees: without the style sheet and the tags."""
    return re.sub(r"<[^>]*>", "", re.sub(r"<style>.*?</style>", "", page, flags=re.S))


def test_one_run_shows_every_figure_with_its_formula():
    run = results()
    page = report.render([run])
    text = text_of(page)
    for name in ("final_accuracy", "average_accuracy", "forgetting", "retention", "gain", "old", "new",
                 "forgetting_proper"):  # fmt: skip
        assert f"{100 * run[name]:.1f}" in text, name
        assert markup.formula(name) in page, name
    for score in (score for row in run["accuracy_matrix"] for score in row if score is not None):
        assert f">{100 * score:.1f}<".replace("100.0", "100") in page
    for words in ("1,500,000", "22,500", "81,000", "42.0 s", "5f5f5f", "name: ranpac", "intent 9.14", "2026-11-22"):
        assert words in text, words


def test_what_is_stored_and_what_an_answer_costs_is_shown_over_the_tasks():
    run = results(3)
    page = report.render([run])
    drawn = {"stored-per-task": "1.91, 3.72, 5.53", "milliseconds": "0.2, 0.3, 0.4", "passes": "1, 2, 3"}
    for name, values in drawn.items():
        assert values in page.partition(f'id="fig-{name}"')[2].partition("</figure>")[0], name
    old = {name: value for name, value in run.items() if not name.endswith("_per_task") or name == "seconds_per_task"}
    assert 'id="fig-passes"' not in report.render([old]), "results of an older version have no such values"
    both = report.render([results(3, "esn"), old])
    assert "esn: 1.91, 3.72, 5.53" in both.partition('id="fig-growth-stored"')[2]
    row = both.partition("<strong>esn</strong>")[2].partition("</tr>")[0]
    assert ">0.4</td>" in row


def test_the_gate_is_unknown_alone_and_known_beside_joint():
    assert "? unknown" in text_of(report.render([results()]))
    assert "everlearn compare --methods ranpac,joint" in text_of(report.render([results()]))
    joint = results(method="joint", loss=0.0)
    both = text_of(report.render([results(), joint]))
    assert "✓ pass" in both and "? unknown" not in both
    forgot = results(loss=0.1)
    assert "✗ fail" in text_of(report.render([forgot, joint]))
    assert "✗ fail" not in text_of(report.render([forgot, joint], least=(0.1, 0.9)))


def test_the_printed_command_is_one_line_however_long(capsys):
    run = results()
    run["config"]["stream"] = {"name": "clinc150", "max_train_per_class": 10, "class_seed": 1993, "seed": 7}
    final_table(run)
    line = next(line for line in capsys.readouterr().out.splitlines() if line.lstrip().startswith("everlearn compare"))
    assert line.split()[-2:] == ["--stream.seed", "7"] and len(line) > WIDTH


def test_a_run_of_an_earlier_version_lacks_forgetting_proper_and_says_so():
    newer = ("old", "new", "forgetting_proper", "known", "validation")
    older = {key: value for key, value in results().items() if key not in newer}
    assert "not measured: the version of everlearn that made this run" in text_of(report.render([older]))
    both = text_of(report.render([older, results(method="joint", loss=0.0)]))
    assert "✓ pass" in both, "the gate needs the accuracy matrix alone"


def test_a_stream_of_two_steps_shows_the_old_model_and_full_training():
    run, joint = results(2, "lda"), results(2, "joint", loss=0.0)
    text = text_of(report.render([run, joint]))
    (then, _), (now, new) = ([100 * (score or 0) for score in row] for row in run["accuracy_matrix"])
    full = 100 * joint["accuracy_matrix"][1][1]
    assert f"Old data: the old model had {then:.1f} %, now it is {now:.1f} %." in text
    assert f"New data: {new:.1f} %, and full training {full:.1f} %." in text
    assert "Old data: the old model" not in text_of(report.render([results(3)]))


def test_the_seeds_of_a_method_are_one_row_with_an_interval():
    runs = [results(method=method, level=level, seed=seed, fingerprint=f"{seed}")
            for seed in range(3) for method, level in (("joint", 0.97), ("lda", 0.9))]  # fmt: skip
    page = report.render(runs)
    methods = text_of(page.split('id="methods"')[1].split("</table>")[0])
    assert methods.count("lda") == 1 and methods.count(" ± ") > 4
    assert "does not hold" in page and "not comparable" not in page and "2 methods on clinc150" in page
    assert "lda, seed 2" in page, "each run has its details"


def test_a_run_above_joint_is_told_with_the_likely_cause():
    above = [results(method="lda", level=0.96, trainable_parameters=0), results(method="joint", level=0.8)]
    text = text_of(report.render(above))
    assert re.search(r"Warning: lda \(\+\d+\.\d points\) is above joint, .* closed form .* --seeds 5", text)
    assert "above joint" not in text_of(report.render([results(method="lda", level=0.7), above[1]]))


def test_a_single_task_has_no_old_and_no_curves():
    page = report.render([results(1)])
    assert "A single task leaves no old task" in page
    assert 'id="fig-matrix"' in page and 'id="fig-curve"' not in page


def test_classes_stand_with_the_lowest_recall_first():
    run = with_classes(results(2, classes=15))
    page = report.render([run])
    lowest = min(run["per_class"], key=lambda score: score["recall"])
    first = text_of(page.partition("most often taken for")[2])
    assert first.startswith(f"{lowest['name']}{100 * lowest['recall']:.1f}")
    assert all(text_of(page).count(score["name"]) >= 2 for score in run["per_class"])
    assert "the other 10 classes" in page and markup.formula("precision") in page
    pair = run["confusion"]["pairs"][0]
    shown = f"<bdi>{pair['true']}</bdi></td><td><bdi>{pair['predicted']}</bdi></td>"
    assert shown in page
    assert 'id="fig-confusion"' not in page  # thirty classes: too many to read


def test_a_confusion_matrix_of_few_classes_is_drawn():
    run = with_classes(results(2, classes=3))
    page = report.render([run])
    drawn = page.partition('id="fig-confusion"')[2].partition("</table>")[0]
    for row in run["confusion"]["matrix"]:
        for count in row:
            assert not count or f">{count}</td>" in drawn


def test_retrieval_speaks_of_ndcg():
    text = text_of(report.render([retrieval()]))
    assert "Final nDCG@10" in text and "recall@10 in %" in text and "mrr@10 in %" in text
    assert "accuracy" not in text.lower()
    assert "old-then-new · text · ranking · 2 tasks" in text
    assert "class-incremental · text · classes · 10 tasks" in text_of(report.render([results()]))


def test_text_of_others_is_escaped():
    page = report.render([rich()])
    assert "<script" not in page and "<img" not in page
    assert "&lt;script&gt;" in page
    assert "<b>overflowed" not in report.render(several())


def test_paper_compat_warnings_and_diagnostics_are_shown():
    page = report.render([rich()])
    assert re.search(r'class="alarm"[^>]*><strong>paper_compat: true', page)
    text = text_of(page)
    for words in ("12 rows were skipped", "one stream of several orders", "chosen by", "prompts used", "shown"):
        assert words in text, words
    assert "histogram of 5 columns, the highest 9" in page
    assert "paper_compat: true" not in report.render([results()])


def test_several_runs_are_sorted_and_the_failed_have_their_reason():
    runs = several()
    page = report.render(runs, "Take ranpac & rest.")
    methods = page.split('id="methods"')[1].split("</table>")[0]
    order = re.findall(r"<strong>(\w+)</strong>", methods)
    done = sorted((r for r in runs if "error" not in r and "skipped" not in r), key=lambda r: -r["final_accuracy"])
    assert order == [r["method"] for r in done]
    text = text_of(page)
    assert "the mask &lt;b&gt;overflowed&lt;/b&gt;" in text and "does not cover text" in text
    assert "Take ranpac &amp; rest." in text
    assert "paper_compat: true" in methods


def test_the_front_is_of_those_that_pass_and_leaves_joint_out():
    runs = [
        results(method="joint", loss=0.0),
        results(method="good", loss=0.005, seconds=50),
        results(method="slow", level=0.9, loss=0.02, seconds=500),
        results(method="cheap", level=0.93, loss=0.01, seconds=5),
        results(method="forgetful", loss=0.2, seconds=1),
    ]
    assert compared._kinds(judge(runs)) == ["reference", "front", "pass", "front", "fail"]
    assert compared._kinds(judge(runs[1:])) == ["unknown"] * 4


def test_the_reference_has_learned_the_same_data():
    run, other = results(), results(method="joint", fingerprint="other")
    assert beside_joint(run, [run, other]) == (None, None)
    assert None not in beside_joint(run, [run, results(method="joint")])
    assert "fingerprints differ" in report.render([run, other])


def test_runs_that_share_a_method_are_told_apart():
    assert compared.labels([results(seed=0), results(seed=1)]) == ["ranpac, seed 0", "ranpac, seed 1"]
    assert compared.labels([results(), results()]) == ["ranpac (1)", "ranpac (2)"]


def test_only_failed_runs_still_make_a_page():
    text = text_of(report.render([{"method": "l2p", "error": "no memory left"}]))
    assert "No run finished" in text and "no memory left" in text


@pytest.mark.parametrize("tasks", [1, 2, 20, 100])
def test_size(tasks):
    assert len(report.render([results(tasks)]).encode()) < 1_000_000


def test_text_in_the_matrix_contrasts_with_its_cell():
    rules = re.findall(r"background:#(\w\w)(\w\w)(\w\w);color:#(\w+)", heatmap.style())
    assert len(rules) == heatmap.SHADES
    brightness = []
    for *colour, text in rules:
        light = heatmap.luminance([int(part, 16) for part in colour])
        brightness.append(light)
        contrast = 1.05 / (light + 0.05) if text == "fff" else (light + 0.05) / 0.05
        assert contrast >= 4.5
    # Lightness alone orders the shades, so the map reads the same in any colour vision and in grey.
    assert brightness == sorted(brightness, reverse=True)


@pytest.mark.parametrize("values", [[50.0], [0.0, 100.0], [97.1, 97.2], [-3.0, 104.0], [0.0, 460.0], []])
def test_axes_hold_their_values(values):
    low, high = figures.around(values)
    assert low < high and all(low <= value <= high for value in values)
    ticks = figures.ticks(low, high)
    assert 3 <= len(ticks) <= 7 and all(low <= tick <= high for tick in ticks)


def test_write_report_reads_folders_and_replaces_at_once(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(results(2, name)))
    out = tmp_path / "new" / "report.html"
    assert report.write_report([tmp_path / "a", tmp_path / "b"], out, "Take a.") == out
    before = out.read_text(encoding="utf-8")
    assert "Take a." in before and [file.name for file in out.parent.iterdir()] == ["report.html"]

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        report.write_report([tmp_path / "a"], out)
    assert out.read_text(encoding="utf-8") == before
    assert [file.name for file in out.parent.iterdir()] == ["report.html"]


def test_folders_that_hold_no_run_are_named(tmp_path):
    with pytest.raises(EverlearnError, match=r"no results\.json"):
        report.write_report([tmp_path], tmp_path / "report.html")
    for content in ("{", "[]"):
        (tmp_path / "results.json").write_text(content)
        with pytest.raises(EverlearnError, match=r"results\.json"):
            report.write_report([tmp_path], tmp_path / "report.html")
    with pytest.raises(ValueError):
        report.render([])


def test_results_of_an_earlier_version_are_refused_in_one_line(tmp_path):
    old = {key: value for key, value in results(2).items() if key != "goal"}
    (tmp_path / "results.json").write_text(json.dumps(old))
    said = r"^\S*results\.json is not what this version of everlearn writes \(the entry \S*goal: Field required\): "
    with pytest.raises(EverlearnError, match=said):
        report.write_report([tmp_path], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
    skipped = {"method": "l2p", "skipped": "it reads images"}
    (tmp_path / "compare.json").write_text(
        json.dumps(
            {
                "stream": "clinc150",
                "fingerprint": "f",
                "backbone": None,
                "seed": 0,
                "methods": {},
                "results": [skipped, old],
            }
        )
    )
    with pytest.raises(EverlearnError, match=said.replace("results", "compare")):
        report.write_report([tmp_path], tmp_path / "report.html")


def test_formulas_typeset_completely():
    for name in FORMULAS:
        assert "_{" not in markup.formula(name)


def test_importing_report_is_light():
    heavy = "{'torch', 'transformers', 'sklearn', 'matplotlib', 'yaml', 'numpy'}"
    code = f"import sys, everlearn.report; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("width", [60, 80, 100])
def test_the_table_of_a_comparison_leaves_out_columns_rather_than_names(capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    compare_table([results(5, "simplecil"), results(5, "retrieval_augmented")])
    head, *rows = capsys.readouterr().out.splitlines()[1:4]
    assert head.split()[:6] == ["method", "final", "old", "new", "gate", "forgot"]
    assert "memory" in head or width < 100
    assert {row.split()[0] for row in rows} == {"simplecil", "retrieval_augmented"}
    assert all(len(line) <= width for line in (head, *rows))
