"""The scripts in notebooks/ run as a user would run them and keep their promises."""

import json
import os
import re
import runpy
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import quick

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


def run(script, out, *arguments, **environment):
    """What a script prints to stdout, line by line, and to stderr."""
    result = subprocess.run(
        [sys.executable, NOTEBOOKS / script, "--out", out, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=out,
        env={**os.environ, "XLA_FLAGS": "", **environment},  # a long run wants the optimiser
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines(), result.stderr


def leaves_behind(out, *pictures):
    for picture in pictures:
        assert (out / picture).read_bytes().startswith(b"\x89PNG")
    assert (out / "best").is_dir()
    assert len(list((out / "tensorboard").glob("events.out.tfevents.*"))) == 1


def test_digits_reaches_97_percent_and_leaves_everything_behind(tmp_path):
    lines, stderr = run("digits.py", tmp_path)
    assert sum("validation loss" in line for line in lines) == 30
    assert "training" in stderr, "the progress bar"
    assert float(re.fullmatch(r"held-out accuracy: ([\d.]+) %", lines[-1])[1]) >= 97
    leaves_behind(tmp_path, "curves.png")


def error_rate(line):
    return float(re.fullmatch(r"held-out character error rate: ([\d.]+) %", line)[1])


def test_an_eighth_of_ctc_digits_already_reads_and_leaves_everything_behind(tmp_path):
    lines, stderr = run("ctc_digits.py", tmp_path, "--steps", "300")
    assert sum("validation loss" in line for line in lines) == 2
    assert "training" in stderr, "the progress bar"
    assert error_rate(lines[-1]) <= 20
    leaves_behind(tmp_path, "curves.png", "alignment.png")


def perplexity(line):
    return float(re.fullmatch(r"held-out perplexity: ([\d.]+), next word right: [\d.]+ %", line)[1])


def both_forms(text):
    """Loss and memory of the plain form and of ours, as printed."""
    found = re.findall(r"^(plain|linear_cross_entropy) +loss ([\d.]+)  memory +([\d.]+) MiB$", text, re.MULTILINE)
    assert [form for form, _, _ in found] == ["plain", "linear_cross_entropy"]
    return [(float(loss), float(memory)) for _, loss, memory in found]


def test_a_few_steps_of_language_model_already_learn_and_leave_everything_behind(tmp_path):
    lines, stderr = run("language_model.py", tmp_path, "--steps", "20")
    assert sum("validation loss" in line for line in lines) == 1
    assert "training" in stderr, "the progress bar"
    assert perplexity(lines[-1]) <= 700  # of 3,600 words
    (plain, all_logits), (ours, memory) = both_forms("\n".join(lines))
    assert abs(plain - ours) <= 1e-5
    assert memory <= all_logits / 8
    leaves_behind(tmp_path, "curves.png", "memory.png")


def held_out(lines, pattern):
    """The numbers that a comparison prints for each method, by its name."""
    found = (re.fullmatch(rf"held-out (.{{11,16}}?) +{pattern}", line) for line in lines)
    return {match[1].strip(): tuple(map(float, match.groups()[1:])) for match in found if match}


MULTITASK = r"malignant ([\d.]+)  accuracy ([\d.]+)  radius R² (-?[\d.]+)  texture R² (-?[\d.]+)"
IMBALANCE = r"precision ([\d.]+)  recall ([\d.]+)  average precision ([\d.]+)"
QUICK = quick.FLAGS  # all is compiling here
METHODS = ("fixed", "scheduled", "uncertainty", "PCGrad")
WEIGHED = ("plain", "balanced", "effective number", "focal", "balanced focal")


def writes(out, names, *pictures):
    for picture in pictures:
        assert (out / picture).read_bytes().startswith(b"\x89PNG")
    for name in names:
        assert len(list((out / "tensorboard" / name.replace(" ", "_")).glob("events.out.tfevents.*"))) == 1


def test_a_few_epochs_of_multitask_learn_the_diagnosis_with_every_method(tmp_path):
    lines, _ = run("multitask.py", tmp_path, "--epochs", "20", XLA_FLAGS=QUICK)
    results = held_out(lines, MULTITASK)
    assert tuple(results) == METHODS
    assert all(accuracy > 0.8 for _, accuracy, _, _ in results.values())
    writes(tmp_path, METHODS, "losses.png", "weights.png")


def test_a_few_epochs_of_imbalance_show_what_weights_do_to_recall(tmp_path):
    lines, _ = run("imbalance.py", tmp_path, "--epochs", "10", XLA_FLAGS=QUICK)
    results = held_out(lines, IMBALANCE)
    assert tuple(results) == WEIGHED
    assert results["plain"][1] < 0.2
    assert results["balanced"][1] > 0.6
    assert results["balanced focal"][1] > 0.6
    assert "  nothing suspicious" in lines, "what diagnose says"
    writes(tmp_path, WEIGHED, "course.png", "curves.png")


@pytest.mark.parametrize(
    ("name", "pattern", "names"), [("multitask", MULTITASK, METHODS), ("imbalance", IMBALANCE, WEIGHED)]
)
def test_rendered_comparison_shows_what_it_promises(name, pattern, names):
    path = NOTEBOOKS / f"{name}.ipynb"
    outputs = [output for cell in json.loads(path.read_text())["cells"] for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", ()) for output in outputs) == 2
    text = "".join("".join(output["text"]) for output in outputs if output["output_type"] == "stream")
    results = held_out(text.splitlines(), pattern)
    assert tuple(results) == names
    if name == "multitask":
        assert all(
            accuracy > 0.9 and radius > 0.9 and texture > 0.8 for _, accuracy, radius, texture in results.values()
        )
    else:
        assert results["balanced"][1] > results["plain"][1] + 0.1
        assert all(average > 0.8 for _, _, average in results.values())
    assert path.stat().st_size < 500_000


def as_cells(script):
    """Type and text of each cell, by the percent format: a markdown cell is a comment."""
    for part in re.split(r"^# %%", script, flags=re.MULTILINE)[1:]:
        title, _, text = part.partition("\n")
        if title == " [markdown]":
            yield "markdown", re.sub(r"^# ?", "", text, flags=re.MULTILINE).strip()
        else:
            yield "code", text.strip()


@pytest.mark.parametrize("rendered", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.name)
def test_rendered_notebook_is_its_script_executed(rendered):
    cells = json.loads(rendered.read_text())["cells"]
    assert [(cell["cell_type"], "".join(cell["source"]).strip()) for cell in cells] == list(
        as_cells(rendered.with_suffix(".py").read_text())
    ), "make it again with the command in its first cell"
    assert all(cell["execution_count"] == n for n, cell in enumerate((c for c in cells if c["cell_type"] == "code"), 1))


def shown(rendered):
    """What a rendered notebook prints, with two pictures."""
    path = NOTEBOOKS / rendered
    outputs = [output for cell in json.loads(path.read_text())["cells"] for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", ()) for output in outputs) == 2
    assert {output.get("name", "picture") for output in outputs} == {"stdout", "picture"}
    assert path.stat().st_size < 500_000
    return "".join("".join(output["text"]) for output in outputs if output["output_type"] == "stream")


def test_rendered_ctc_digits_shows_what_it_promises():
    assert error_rate(shown("ctc_digits.ipynb").splitlines()[-1]) <= 2


def test_rendered_language_model_shows_what_it_promises():
    text = shown("language_model.ipynb")
    assert perplexity(text.splitlines()[-1]) <= 90
    (plain, all_logits), (ours, memory) = both_forms(text)
    assert abs(plain - ours) <= 1e-5
    assert memory <= all_logits / 8


def test_words_are_the_text_and_every_window_has_its_successors():
    of = names("language_model.py")
    text = "The for loop:\n\n   for x in y:  # é\n\n\n  "
    assert "".join(of["words"](text)) == text
    assert of["words"](text)[:4] == ["The", " for", " loop", ":"]
    numbers = np.arange(70 * of["BATCH_SIZE"])
    batches = of["all_batches"](numbers)
    kept = np.concatenate([batch.words[batch.mask] for batch in batches])
    np.testing.assert_array_equal(kept, numbers[:-1])
    for batch in batches:
        np.testing.assert_array_equal(batch.following[batch.mask], batch.words[batch.mask] + 1)


@cache
def names(script):
    return runpy.run_path(str(NOTEBOOKS / script))


def test_edit_distance_is_that_of_its_definition():
    @cache
    def distance(a, b):
        if not a or not b:
            return len(a) + len(b)
        return min(distance(a[1:], b) + 1, distance(a, b[1:]) + 1, distance(a[1:], b[1:]) + (a[0] != b[0]))

    rng = np.random.default_rng(0)
    for _ in range(100):
        a, b = (rng.integers(3, size=rng.integers(7)) for _ in range(2))
        assert names("ctc_digits.py")["edit_distance"](a, b) == distance(tuple(a), tuple(b))


def test_reading_merges_repeats_then_drops_blanks_and_stops_at_the_end():
    path = np.array([[10, 3, 3, 10, 3, 7, 7, 10, 1], [5, 5, 5, 10, 10, 5, 10, 2, 2]])
    read = names("ctc_digits.py")["read"](np.eye(11)[path], np.array([8, 9]))
    assert [digits.tolist() for digits in read] == [[3, 3, 7], [5, 5, 2]]


def test_no_image_of_a_test_strip_was_seen_in_training():
    parts = [{image.tobytes() for image in data.images} for data in names("ctc_digits.py")["load_data"]()]
    assert [len(part) for part in parts] == [1197, 240, 360]
    assert len(set.union(*parts)) == 1797
