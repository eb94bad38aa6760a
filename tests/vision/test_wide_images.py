"""Images that are not square, and images of more than 8 bits: trained, sampled and scored from a store."""

import csv
import json
import math

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from arflows.core.runtime.errors import UserError
from arflows.data.store_writer import StoreWriter
from arflows.vision import evaluate, sample, score, train
from arflows.vision.model import MADE, MAF, FlowPlusPlus, Glow, ImageFlow, RealNVP, TarFlow
from arflows.vision.render import grid, save_png
from arflows.vision.representation import ImageSpec
from tests.launch import command
from tests.vision.conftest import RECIPE

pytestmark = pytest.mark.report


def models(bits):
    size = {"image_size": (8, 12), "channels": 1, "bits": bits}
    return [
        RealNVP(**size, scales=1, blocks=1, width=4),
        Glow(**size, levels=1, steps=1, width=4),
        FlowPlusPlus(**size, blocks=1, width=4, heads=1, components=2),
        MAF(**size, transforms=1, hidden_features=(8,)),
        MADE(**size, hidden_features=(8,)),
        TarFlow(**size, patch_size=4, blocks=1, layers=1, width=8, heads=1),
    ]


@pytest.mark.parametrize("bits", [5, 8, 12, 16])
def test_every_model_takes_them(bits, tmp_path):
    torch.manual_seed(0)
    for flow in models(bits):
        flow.eval()
        x = torch.randint(1 << bits, (2, 1, 8, 12), dtype=torch.uint8 if bits <= 8 else torch.int32)
        with torch.no_grad():
            log_prob = flow.log_prob(x)
        assert log_prob.isfinite().all()
        drawn = flow.sample(2, generator=torch.Generator().manual_seed(0))
        assert drawn.shape == x.shape
        assert drawn.dtype == x.dtype
        assert 0 <= int(drawn.min()) <= int(drawn.max()) < 1 << bits
        flow.save_pretrained(tmp_path / "model")
        assert ImageFlow.from_pretrained(tmp_path / "model").spec == ImageSpec(8, 12, 1, bits)


def test_probabilities_count_integers_of_all_the_bits():
    """Of uniform images each pixel takes its bits, whatever they are."""
    for bits in (5, 8, 12, 16):
        flow = MAF((2, 3), 1, transforms=1, hidden_features=(4,), batch_norm=False, alpha=1e-6, bits=bits).eval()
        x = torch.randint(1 << bits, (64, 1, 2, 3)).to(torch.uint8 if bits <= 8 else torch.int32)
        y = (x + torch.rand(x.shape)) / (1 << bits)
        p = 1e-6 + (1 - 2e-6) * y
        z = torch.logit(p)
        density = -0.5 * (z.square() + math.log(2 * math.pi)) - p.log() - (-p).log1p() + math.log(1 - 2e-6)
        wanted = density.sum((1, 2, 3)) - 6 * bits * math.log(2)
        with torch.no_grad():
            found = flow.log_prob(x)
        assert float(found.mean()) == pytest.approx(float(wanted.mean()), abs=4 * float(wanted.std()) / 8)


def test_values_beyond_the_bits_are_refused():
    flow = RealNVP(8, 1, scales=1, blocks=1, width=4, bits=12)
    with pytest.raises(UserError, match=r"run from 0 to 5000, outside 0…4095 of 12 bits"):
        flow.log_prob(torch.tensor([0, 5000], dtype=torch.int32).repeat(32).reshape(1, 1, 8, 8))
    with pytest.raises(UserError, match=r"the model takes 12 bits: give torch\.int32 in 0…4095"):
        flow.log_prob(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(UserError, match="bits=17"):
        RealNVP(8, 1, bits=17)


def test_from_store_to_scores(tmp_path, capsys):
    """12-bit images of 8×12 pixels, through every verb."""
    generator = np.random.default_rng(0)
    spec = ImageSpec(8, 12, 1, 12)
    with StoreWriter(tmp_path / "wide.h5", domain="vision", spec=spec.as_dict(), provenance={"source": "x"}) as writer:
        for split, count in (("train", 96), ("val", 32), ("test", 32)):
            ramp = np.linspace(500, 3500, 12)[None, None, None]
            images = np.clip(ramp + generator.normal(0, 50, (count, 1, 8, 12)), 0, 4095).astype(np.uint16)
            writer.append(split, {"images": images})
    recipe = yaml.safe_load(json.dumps(RECIPE))
    recipe["model"]["flow"]["init_args"] |= {"image_size": [8, 12], "bits": 12}
    recipe["data"]["store"] = str(tmp_path / "wide.h5")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run = tmp_path / "run"
    command(train)(["--config", str(tmp_path / "recipe.yaml"), "--out", str(run)])
    val = json.loads((run / "model/training.json").read_text())["val"]["value"]
    command(sample)(["--model", str(run), "--out", str(tmp_path / "samples"), "--count", "3"])
    arrays = np.load(tmp_path / "samples/samples.npz")
    assert arrays["images"].shape == (3, 1, 8, 12)
    assert arrays["images"].dtype == np.int32
    read = np.asarray(Image.open(tmp_path / "samples/images/0000.png")).astype(np.int64)
    np.testing.assert_array_equal(read, arrays["images"][0, 0])
    words = ["--model", str(run), "--images", str(tmp_path / "wide.h5"), "--split", "val"]
    command(score)([*words, "--out", str(tmp_path / "scores.csv")])
    with (tmp_path / "scores.csv").open() as file:
        scored = np.mean([float(row["bits_per_dim"]) for row in csv.DictReader(file)])
    assert scored == pytest.approx(val, abs=0.05)
    words = ["--model", str(run), "--store", str(tmp_path / "wide.h5"), "--out", str(tmp_path / "figures.json")]
    command(evaluate)(words)
    assert json.loads((tmp_path / "figures.json").read_text())["bits_per_dim"]["value"] == pytest.approx(val, abs=0.2)


def test_pictures_of_other_depths(tmp_path):
    images = torch.tensor([0, 2047, 4095], dtype=torch.int32).repeat(2, 1, 4, 1)
    save_png(images[0], tmp_path / "grey.png", 12)
    assert np.asarray(Image.open(tmp_path / "grey.png")).tolist() == images[0, 0].tolist()
    save_png(images[0].expand(3, -1, -1), tmp_path / "colour.png", 12)
    assert np.asarray(Image.open(tmp_path / "colour.png"))[0, :, 0].tolist() == [0, 127, 255]
    assert grid(images, bits=12).dtype == torch.uint8
    assert int(grid(images, bits=12).max()) == 255
