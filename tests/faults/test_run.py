"""The fault injection script with few kills: no losses in any domain."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.faults import run
from tests.faults.commands import Lost
from tests.faults.trial import Trial, losses

QUICKEST = "tabular"
DOMAINS = [name for name, _ in run.domains()]


@pytest.mark.parametrize(
    "domain", [name if name == QUICKEST else pytest.param(name, marks=pytest.mark.slow) for name in DOMAINS]
)
def test_nothing_is_lost(domain, tmp_path):
    results = run.run([domain], cycles=3, folder=tmp_path)
    for fault, count in results[domain].items():
        assert count.tried > 0
        assert count.lost == 0, (fault, count.remarks)
        assert count.survived == count.tried, (fault, count.remarks)


@pytest.mark.nightly
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("domain", DOMAINS)
def test_nothing_is_lost_in_a_hundred_kills(domain, tmp_path):
    for fault, count in run.run([domain], cycles=100, folder=tmp_path)[domain].items():
        assert count.survived == count.tried, (fault, count.remarks)


def test_a_loss_would_be_seen(tmp_path):
    """Of weights that differ in a bit, or losses that differ in a digit."""
    out = tmp_path / "run"
    (out / "model").mkdir(parents=True)
    (out / "logs" / "version_0").mkdir(parents=True)
    save_file({"a": torch.ones(3)}, out / "model" / "model.safetensors")
    metrics = out / "logs" / "version_0" / "metrics.csv"
    metrics.write_text("step,train/nats,val/nats\n0,1.25,\n1,1.5,\n1,,1.75\n")
    trial = Trial.__new__(Trial)
    trial.weights, trial.losses = load_file(out / "model" / "model.safetensors"), losses(out)
    assert len(trial.losses) == 3
    trial.compare(out)
    metrics.write_text("step,train/nats,val/nats\n0,1.25,\n1,1.5,\n1,,1.7500001\n")
    with pytest.raises(Lost, match="losses differ"):
        trial.compare(out)
    save_file({"a": torch.ones(3) + torch.finfo(torch.float32).eps}, out / "model" / "model.safetensors")
    with pytest.raises(Lost, match="a differs"):
        trial.compare(out)
