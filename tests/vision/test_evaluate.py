import json
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torch import nn

from arflows.core.dequantization import Dequantizer
from arflows.core.runtime.errors import UserError
from arflows.data.store_writer import write_store
from arflows.vision import evaluate as evaluation
from arflows.vision import metrics
from arflows.vision.evaluate import evaluate
from arflows.vision.metrics import first_logit, frechet_distance, logit_space_figure
from arflows.vision.model import MAF, Glow, RealNVP
from arflows.vision.representation import ImageSpec
from tests.launch import command


def test_measures_a_trained_model(run_folder, digits, tmp_path, capsys):
    out = tmp_path / "deep" / "result.json"
    command(evaluation)(["--model", str(run_folder), "--store", str(digits), "--out", str(out)])
    printed = capsys.readouterr().out
    result = json.loads(out.read_text())
    trained = json.loads((run_folder / "model/training.json").read_text())["val"]["value"]
    assert result["bits_per_dim"]["value"] == pytest.approx(trained, abs=0.2)
    assert result["bits_per_dim"]["count"] == 160
    assert result["bits_per_dim"]["kind"] == "bound"
    assert result["round_trip_error"]["value"] < 1e-5
    assert result["samples_per_second"]["value"] > 0
    assert result["model"] == {"class": "RealNVP", "parameters": 2164}
    assert result["data"]["fingerprint"] == ImageSpec(8, 8, 1).fingerprint()
    assert result["options"]["split"] == "test"
    assert {"commit", "torch"} <= result["software"].keys()
    assert "upper bound by uniform dequantisation, 1 draw, over 160 examples" in printed
    assert "a second" in printed


def test_bits_per_dim_are_those_of_a_density_known_in_closed_form(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (50, 1, 4, 4), np.uint8)
    write_store(
        tmp_path / "s.h5", domain="vision", spec=ImageSpec(4, 4, 1).as_dict(), splits={"test": {"images": images}}
    )
    flow = RealNVP(4, 1, scales=1, blocks=1, width=4).eval()
    flow.save_pretrained(tmp_path / "model")
    result = evaluate(str(tmp_path / "model"), tmp_path / "s.h5", tmp_path / "r.json", draws=1)
    # an untrained RealNVP is the identity after the logit: the density is known in closed form
    middles = (np.arange(256 * 50) + 0.5) / (256 * 50)
    p = 0.05 + 0.9 * middles
    logit, slope = np.log(p / (1 - p)), 0.9 / (p * (1 - p))
    nats = -0.5 * logit**2 - 0.5 * np.log(2 * np.pi) + np.log(slope) - np.log(256)
    figure = result["bits_per_dim"]
    # batch normalisation's epsilon is part of the untrained model
    assert figure["value"] == pytest.approx(-nats.mean() / np.log(2), abs=4 * figure["standard_error"] + 0.01)
    assert result["bits_per_dim"]["standard_error"] < 0.05


def test_repeats_itself(run_folder, digits, tmp_path):
    first, again = (evaluate(str(run_folder), digits, tmp_path / "r.json")["bits_per_dim"] for _ in range(2))
    assert first == again


class Means(nn.Module):
    """Two features: the means of an image's upper and of its lower half."""

    num_features = 2

    def forward(self, images):
        assert images.shape[1] == 3
        assert images.dtype == torch.uint8
        return images.double().unflatten(2, (2, -1)).mean((1, 3, 4))


def test_frechet_distance_of_images_that_are_brighter_is_the_difference_squared():
    images = torch.randint(0, 200, (50, 1, 4, 4), dtype=torch.uint8)

    def distance(other):
        return frechet_distance(Means(), images.split(20), other.split(20), torch.device("cpu"))

    assert distance(images) == pytest.approx(0, abs=1e-6)
    assert distance(images + 10) == pytest.approx(10**2 + 10**2)


def test_fid_comes_with_its_protocol(run_folder, digits, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluation, "inception", Means)
    results = [evaluate(str(run_folder), digits, tmp_path / "r.json", fid=count, seed=3) for count in (90, 90, 64)]
    fid = json.loads((tmp_path / "r.json").read_text())["fid"]
    assert {"samples": 64, "images": 160, "split": "test", "temperature": 1.0}.items() <= fid.items()
    assert "Inception" in fid["network"]
    assert fid["value"] > 0
    assert results[0]["fid"] == results[1]["fid"] != results[2]["fid"]
    assert f"{fid['value']:.2f}, 64 samples, 160 images of test" in capsys.readouterr().out
    assert "fid" not in evaluate(str(run_folder), digits, tmp_path / "r.json")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ModuleNotFoundError("torch-fidelity"), r"pip install torch-fidelity"),
        (URLError("no network"), r"weights .*\.pth in .*checkpoints.*no network.*copy the file there"),
    ],
)
def test_fid_without_its_network_says_what_to_do(run_folder, digits, tmp_path, monkeypatch, error, sentence):
    def missing(*args, **options):
        raise error

    monkeypatch.setattr(metrics, "NoTrainInceptionV3", missing)
    with pytest.raises(UserError, match=sentence):
        evaluate(str(run_folder), digits, tmp_path / "r.json", fid=64)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--split", "holdout"], "no split 'holdout'"),
        (["--draws", "0"], "--draws takes a whole number from 1 up, not '0'"),
        (["--batch_size", "0"], "--batch_size takes a whole number from 1 up, not '0'"),
        (["--fid", "1"], "fid is 1"),
        (["--store", "missing.h5"], "missing.h5"),
        (["--model", "missing"], "no model folder missing"),
    ],
)
def test_bad_options_are_one_sentence(run_folder, digits, tmp_path, capsys, words, sentence):
    out = tmp_path / "r.json"
    with pytest.raises(SystemExit) as ending:
        command(evaluation)(["--model", str(run_folder), "--store", str(digits), "--out", str(out), *words])
    assert ending.value.code == 2
    assert sentence in capsys.readouterr().err
    assert not out.exists()


def test_a_store_of_another_size_is_refused(run_folder, tmp_path, capsys):
    images = np.zeros((4, 3, 16, 16), np.uint8)
    write_store(
        tmp_path / "s.h5", domain="vision", spec=ImageSpec(16, 16, 3).as_dict(), splits={"test": {"images": images}}
    )
    words = ["--model", str(run_folder), "--store", str(tmp_path / "s.h5"), "--out", str(tmp_path / "r.json")]
    with pytest.raises(SystemExit):
        command(evaluation)(words)
    assert "height 8 ≠ 16, width 8 ≠ 16, channels 1 ≠ 3" in capsys.readouterr().err


def test_a_store_of_another_domain_is_refused(run_folder, tmp_path, capsys):
    arrays = {"test": {"waves": np.zeros((4, 100), np.float32)}}
    write_store(tmp_path / "s.h5", domain="audio", spec={"sample_rate": 16000}, splits=arrays)
    words = ["--model", str(run_folder), "--store", str(tmp_path / "s.h5"), "--out", str(tmp_path / "r.json")]
    with pytest.raises(SystemExit):
        command(evaluation)(words)
    assert "'audio', not 'vision'" in capsys.readouterr().err


def test_weights_are_not_changed_by_evaluation(run_folder, digits, tmp_path):
    path = run_folder / "model/model.safetensors"
    before = path.read_bytes()
    evaluate(str(run_folder), digits, tmp_path / "r.json")
    assert path.read_bytes() == before
    assert not torch.is_inference_mode_enabled()


def test_density_in_logit_space_is_that_of_the_part_behind_the_logit(monkeypatch):
    """With the noise held still, it is what the rest of the flow says of the logits."""
    monkeypatch.setattr(Dequantizer, "_uniform_noise", lambda self, x, generator: torch.full(x.shape, 0.25))
    torch.manual_seed(0)
    flow = MAF(4, 1, transforms=2, hidden_features=(16,), alpha=0.01).eval()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    images = torch.randint(0, 256, (6, 1, 4, 4), dtype=torch.uint8)
    logits = (0.01 + 0.98 * (images + 0.25) / 256).logit().flatten(1)
    z, log_det = logits, 0.0
    for bijection in list(flow.bijection)[2:]:
        z, part = bijection(z)
        log_det = log_det + part
    expected = -(flow.base.log_prob(z) + log_det).mean()
    figure = logit_space_figure(flow, first_logit(flow), flow.log_prob(images), [{"x": images[:4]}, {"x": images[4:]}])
    assert figure.value == pytest.approx(expected.item(), rel=1e-5)
    assert (figure.unit, figure.kind, figure.count) == ("nats", "density", 6)
    assert first_logit(Glow(8, 3, levels=1, steps=1, width=8)) is None
