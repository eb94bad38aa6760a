"""Training on from a model, the same check for every domain."""

import json

import pytest

from tests.launch import command


def starts_where_it_ended(module, recipe, run, out):
    """Trains on by steps of size zero: the model, its settings and its validation figure stay as they were."""
    words = ["--config", recipe, "--from", run, "--out", out, "--model.learning_rate", 0, "--model.ema_decay", 0]
    command(module)([str(word) for word in [*words, "--trainer.max_epochs", 1]])
    before, after = (json.loads((folder / "model/training.json").read_text()) for folder in (run, out))
    assert after["val"]["value"] == pytest.approx(before["val"]["value"], rel=1e-6)
    assert after["val"]["count"] == before["val"]["count"]
    assert after["from"] == str(run)
    one, other = (json.loads((folder / "model/config.json").read_text()) for folder in (run, out))
    assert one == other
