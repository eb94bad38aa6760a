"""Two processes do what one does: sample, score and evaluate, with gloo, on the CPU."""

import json

import pytest

from arflows.core.commands.cli import main
from tests.launch import in_processes


@pytest.fixture(scope="module")
def outputs(run_folder, speech, tmp_path_factory):
    """Folders with what one process wrote, and two."""
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))

    def verbs(out):
        model = ["--model", run_folder, "--device", "cpu"]
        some = ["--split", "train", "--limit", "3"]
        yield "audio", "sample", [*model, "--speech", speech, *some, "--count", "2", "--out", out / "copies"]
        gap = ["--gap", "[0.05, 0.1]", "--count", "1", "--seed", "4"]
        yield "audio", "sample", [*model, "--speech", speech, *some, *gap, "--out", out / "filled"]
        curves = ["--curves", out / "curves"]
        yield "audio", "score", [*model, "--speech", speech, *some, *curves, "--out", out / "scores.csv"]
        words = ["--store", speech, *some, "--ood", f"[{speech}]", "--perceptual", "false"]
        yield "audio", "evaluate", [*model, *words, "--plots", "2", "--out", out / "result.json"]

    for domain, verb, words in verbs(one):
        main([domain, verb, *map(str, words)])
    told = in_processes(two, 2, *verbs(two))
    return one, two, told


def test_there_is_one_output(outputs):
    one, two, told = outputs
    names = [sorted(path.relative_to(out).as_posix() for path in out.rglob("*")) for out in (one, two)]
    assert names[0] == names[1]
    assert told.count("6 waveforms") == told.count("3 waveforms") == 1


@pytest.mark.parametrize("form", ["wav", "csv", "png"])
def test_files_are_the_same(outputs, form):
    one, two, _ = outputs
    files = sorted(one.rglob(f"*.{form}"))
    assert len(files) >= 3
    for path in files:
        assert path.read_bytes() == (two / path.relative_to(one)).read_bytes(), path


def test_figures_are_the_same(outputs):
    first, second = (json.loads((out / "result.json").read_text()) for out in outputs[:2])
    for name in ("log_likelihood", "bits_per_sample", "speakers", "quality", "separation", "utterances", "skipped"):
        assert first[name] == second[name], name
