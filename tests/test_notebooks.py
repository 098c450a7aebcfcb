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
    found = (re.fullmatch(rf"held-out (.+?) +{pattern}", line) for line in lines)
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


REGIONS = r"coins IoU ([\d.]+) ± [\d.]+  rims IoU ([\d.]+) ± [\d.]+"
NEIGHBOURS = r"5-NN accuracy ([\d.]+) %  R-precision ([\d.]+)"
STUDENTS = r"accuracy ([\d.]+) ± [\d.]+ %"
LINES = r"mean absolute error ([\d.]+) francs, root mean square ([\d.]+) francs"
BANDS = r"holds ([\d.]+) %: ([\d.]+) % of the poorer half, ([\d.]+) % of the richer"


def tour_keeps_its_promise(text):
    rows = re.findall(r"^(.+?) +\d+ +(-?[\d.]+) +(-?[\d.]+)  (\S+)$", text, re.MULTILINE)
    assert sum(name in ("cross_entropy", "huber_loss", "binary_cross_entropy_with_logits") for name, *_ in rows) == 30
    assert all(float(apart) <= 1e-6 for *_, apart in rows)
    torchs, ours = ({name: float(row[side]) for name, *row in rows} for side in (0, 1))
    assert abs(ours["micro-batches"] - ours["whole batch"]) < 1e-5 < abs(ours["mean of means"] - ours["whole batch"])
    assert torchs.keys() == ours.keys() >= {"reduction=none", "masked gradient"}
    assert "ValueError: mse_loss: `input` and `target` must have the same shape, got (6, 1) and (6,)" in text
    apart = dict(re.findall(r"^largest difference of (.+): (\S+)$", text, re.MULTILINE))
    assert "jaxloss from torch" in apart
    assert all(float(number) <= 1e-6 for number in apart.values()), "torch's stored numbers included, where it runs"


def test_tour_has_the_numbers_of_torch_live_or_stored(tmp_path):
    lines, _ = run("tour.py", tmp_path, XLA_FLAGS=QUICK)
    tour_keeps_its_promise("\n".join(lines))
    writes(tmp_path, (), "losses.png")


def test_a_tenth_of_segmentation_already_finds_the_coins(tmp_path):
    lines, _ = run("segmentation.py", tmp_path, "--steps", "30", "--seeds", "1", XLA_FLAGS=QUICK)
    results = held_out(lines, REGIONS)
    assert tuple(results) == ("cross entropy", "focal", "dice", "IoU", "cross entropy + dice")
    assert all(coins > 0.6 for coins, _ in results.values())
    writes(tmp_path, [f"{name}/0" for name in results], "labels.png", "predictions.png")


def test_the_labels_of_segmentation_are_24_coins_and_no_row_is_in_two_parts():
    of = names("segmentation.py")
    train, validation, test = of["load_data"]()
    assert [part.labels.shape for part in (train, validation, test)] == [(2, 76, 384), (1, 76, 384), (1, 76, 384)]
    count = of["ndimage"].label
    assert [count(row > 0)[1] for part in (train, validation, test) for row in part.labels] == [6, 6, 6, 6]
    assert all(0.04 < np.mean(part.labels == of["RIM"]) < 0.08 for part in (train, validation, test))
    assert len({image.tobytes() for part in (train, validation, test) for image in part.images}) == 4


def test_a_few_steps_of_metric_learning_already_beat_the_pixels_and_leave_everything_behind(tmp_path):
    lines, _ = run("metric_learning.py", tmp_path, "--steps", "100", XLA_FLAGS=QUICK)
    results = held_out(lines, NEIGHBOURS)
    assert tuple(results) == ("64 pixels", "3 directions", "triplet", "contrastive", "circle")
    assert results["triplet"][1] > results["64 pixels"][1] + 0.1
    assert results["contrastive"][1] > results["3 directions"][1]
    assert all((tmp_path / "best" / name).is_dir() for name in ("triplet", "contrastive", "circle"))
    writes(tmp_path, ("triplet", "contrastive", "circle"), "course.png", "embedding.png")


def test_r_precision_is_that_of_its_definition():
    rng = np.random.default_rng(0)
    vectors, labels = rng.normal(size=(12, 3)), np.arange(12) % 3
    shares = []
    for i in range(12):
        others = sorted((j for j in range(12) if j != i), key=lambda j: np.sum((vectors[i] - vectors[j]) ** 2))
        shares.append(np.mean([labels[j] == labels[i] for j in others[:3]]))
    assert names("metric_learning.py")["r_precision"](vectors, labels) == pytest.approx(np.mean(shares))


def test_a_few_students_of_distillation_already_gain_by_their_teacher(tmp_path):
    lines, _ = run("distillation.py", tmp_path, "--epochs", "5", "--seeds", "2", XLA_FLAGS=QUICK)
    results = {name: accuracy for name, (accuracy,) in held_out(lines, STUDENTS).items()}
    assert tuple(results) == ("100 labels", "teacher, the 100 images", "teacher, all images", "all labels")
    assert results["teacher, the 100 images"] > results["100 labels"] + 2
    assert results["teacher, all images"] > results["100 labels"] + 4
    writes(tmp_path, [name.replace(",", "") for name in results], "teaching.png", "students.png")


def robust_regression_keeps_its_promise(lines):
    slopes = {
        match[1]: (float(match[2]), float(match[3]))
        for match in (re.fullmatch(r"slope (\S+) +([\d.]+), without the richest household ([\d.]+)", x) for x in lines)
        if match
    }
    moved = {name: without - whole for name, (whole, without) in slopes.items()}
    assert moved["mse"] > 3 * moved["l1"] > 0
    assert moved["mse"] > 3 * moved["huber"] > 0
    (apart,) = (x.rpartition(" ")[2] for x in lines if x.startswith("largest difference of a slope"))
    assert float(apart) <= 1e-3, "from least squares in closed form and from statsmodels' quantile regression"
    assert tuple(held_out(lines, LINES)) == ("mse", "l1", "huber")
    bands = held_out(lines, BANDS)
    assert all(abs(share - 80) < 8 for share in bands["quantile band"])
    assert bands["mse band"][1] > 95


def test_a_tenth_of_the_splits_of_robust_regression_shows_the_same(tmp_path):
    lines, _ = run("robust_regression.py", tmp_path, "--splits", "10", XLA_FLAGS=QUICK)
    robust_regression_keeps_its_promise(lines)
    writes(tmp_path, ("mse", "l1", "huber", "quantile"), "lines.png", "bands.png")


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


INSTALL = '# %pip install -q "jaxloss[notebooks]"'


def test_every_script_is_rendered_listed_and_says_how_to_install_in_colab():
    rendered = {path.stem for path in NOTEBOOKS.glob("*.ipynb")}
    assert {path.stem for path in NOTEBOOKS.glob("*.py")} - {"render"} == rendered
    readme = (NOTEBOOKS / "README.md").read_text()
    for name in rendered:
        cells = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())["cells"]
        assert cells[0]["cell_type"] == "markdown"
        assert "".join(cells[1]["source"]).splitlines()[-1] == INSTALL, "a comment: to run it is the reader's choice"
        assert f"({name}.py)" in readme
        assert f"({name}.ipynb)" in readme


def shown(rendered, pictures=2):
    """What a rendered notebook prints, with so many pictures."""
    path = NOTEBOOKS / rendered
    outputs = [output for cell in json.loads(path.read_text())["cells"] for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", ()) for output in outputs) == pictures
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


def test_rendered_digits_shows_what_it_promises():
    assert float(re.fullmatch(r"held-out accuracy: ([\d.]+) %", shown("digits.ipynb", 1).splitlines()[-1])[1]) >= 97


def test_rendered_tour_has_the_numbers_of_torch():
    text = shown("tour.ipynb", 1)
    assert text.startswith("torch 2.13.0")
    tour_keeps_its_promise(text)


def test_rendered_segmentation_shows_what_it_promises():
    results = held_out(shown("segmentation.ipynb").splitlines(), REGIONS)
    assert all(coins > 0.96 for coins, _ in results.values())
    regions = (results[name][1] for name in ("dice", "IoU", "cross entropy + dice"))
    assert min(regions) > max(results[name][1] for name in ("cross entropy", "focal"))


def test_rendered_metric_learning_shows_what_it_promises():
    pixels, _, *learned = held_out(shown("metric_learning.ipynb").splitlines(), NEIGHBOURS).values()
    assert len(learned) == 3
    assert all(accuracy > pixels[0] and precision > 0.9 for accuracy, precision in learned)


def test_rendered_distillation_shows_what_it_promises():
    lines = shown("distillation.ipynb").splitlines()
    labels, same, distilled, all_labels = (accuracy for (accuracy,) in held_out(lines, STUDENTS).values())
    teacher = float(re.search(r"^held-out teacher: ([\d.]+) %$", "\n".join(lines), re.MULTILINE)[1])
    assert labels + 5 < same < distilled < teacher
    assert abs(distilled - all_labels) < 1


def test_rendered_robust_regression_shows_what_it_promises():
    robust_regression_keeps_its_promise(shown("robust_regression.ipynb").splitlines())


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
