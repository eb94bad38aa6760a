"""Equality of the figures of training and scoring, and of columns with the same name."""

import csv
import json
import re

import numpy as np
import pytest

from arflows.audio import sample, score
from arflows.data.audio_files import write_wav
from tests.launch import command

pytestmark = pytest.mark.report


def test_the_figures_of_train_and_score_agree(speech, run_folder, tmp_path, capsys):
    words = ["--model", run_folder, "--speech", speech, "--split", "val", "--out", tmp_path / "s.csv"]
    command(score)([str(word) for word in words])
    printed = capsys.readouterr().out
    told = re.search(r"log-likelihood (-?[0-9.]+) ± ([0-9.]+) \(s\.e\.\) nats/sample, density", printed)
    facts = json.loads((run_folder / "model/training.json").read_text())["val"]
    assert facts["quantity"] == "negative log-likelihood"
    assert float(told[1]) == pytest.approx(-facts["value"], abs=1e-3)
    assert float(told[2]) == pytest.approx(facts["standard_error"], abs=1e-3)


def test_a_column_of_sample_means_what_it_means_in_score(run_folder, tmp_path):
    """The log-likelihood of a recording with a gap filled in is that of the recording that was written, per sample."""
    waveform = 0.1 * np.random.default_rng(0).standard_normal(22_050 // 4)
    (tmp_path / "in").mkdir()
    write_wav(tmp_path / "in/noise.wav", waveform.astype(np.float32), 22_050)
    words = ["--model", run_folder, "--speech", tmp_path / "in", "--gap", "[0.1, 0.12]", "--out", tmp_path / "filled"]
    command(sample)([str(word) for word in words])
    words = ["--model", run_folder, "--speech", tmp_path / "filled", "--out", tmp_path / "s.csv"]
    command(score)([str(word) for word in words])
    with (tmp_path / "filled/samples.csv").open() as one, (tmp_path / "s.csv").open() as other:
        told, scored = ([float(row["log_likelihood"]) for row in csv.DictReader(file)] for file in (one, other))
    assert told == pytest.approx(scored, abs=0.05)
