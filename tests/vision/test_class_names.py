"""Classes by name: a model keeps the names of its classes, and images are matched to them by name."""

import csv
import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from arflows.core.runtime.errors import UserError
from arflows.vision import sample, score, train
from arflows.vision.inputs import ImageInput
from arflows.vision.model import ImageFlow, RealNVP
from arflows.vision.prepare import prepare
from tests.launch import command
from tests.train_from import starts_where_it_ended
from tests.vision.conftest import RECIPE

pytestmark = pytest.mark.report

GREYS = {"a": 30, "b": 120, "c": 220}


def write(folder, count, grey, seed=0):
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    for number in range(count):
        pixels = np.clip(generator.normal(grey, 10, (8, 8)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


@pytest.fixture(scope="module")
def shades(tmp_path_factory):
    """Images of three classes, each of a shade of its own, a recipe, and a model trained on them."""
    folder = tmp_path_factory.mktemp("shades")
    for name, grey in GREYS.items():
        write(folder / f"main/train/{name}", 100, grey)
        write(folder / f"main/test/{name}", 10, grey, 1)
    for name in "bc":
        write(folder / f"bc/{name}", 10, GREYS[name], 1)
    prepare(str(folder / "main"), folder / "main.h5")
    recipe = yaml.safe_load(json.dumps(RECIPE))
    recipe["model"]["flow"] = {
        "class_path": "arflows.vision.Glow",
        "init_args": {"image_size": 8, "channels": 1, "levels": 1, "steps": 2, "width": 8, "classes": 3},
    }
    recipe["model"]["learning_rate"] = 0.01
    recipe["data"]["store"] = str(folder / "main.h5")
    recipe["trainer"]["max_epochs"] = 20
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command(train)(["--config", str(folder / "recipe.yaml"), "--out", str(folder / "run")])
    return folder


def bits(shades, out, *words):
    command(score)(["--model", str(shades / "run"), "--out", str(out), *map(str, words)])
    with out.open() as file:
        return np.mean([float(row["bits_per_dim"]) for row in csv.DictReader(file)])


def test_the_model_keeps_the_names(shades):
    assert ImageFlow.from_pretrained(shades / "run/model").class_names == ("a", "b", "c")
    assert json.loads((shades / "run/model/config.json").read_text())["arguments"]["classes"] == ["a", "b", "c"]


def test_folders_and_stores_of_some_classes_are_matched_by_name(shades, tmp_path):
    whole = bits(shades, tmp_path / "all.csv", "--images", shades / "main/test")
    one = np.mean([bits(shades, tmp_path / f"{n}.csv", "--images", shades / f"bc/{n}", "--label", n) for n in "bc"])
    folders = bits(shades, tmp_path / "bc.csv", "--images", shades / "bc")
    assert folders == pytest.approx(one, abs=0.02)
    assert folders == pytest.approx(whole, abs=0.3)
    wrong = bits(shades, tmp_path / "wrong.csv", "--images", shades / "bc/b", "--label", "c")
    assert wrong > folders + 1
    prepare(str(shades / "bc"), tmp_path / "bc.h5", test=shades / "bc")
    store = bits(shades, tmp_path / "store.csv", "--images", tmp_path / "bc.h5")
    assert store == pytest.approx(folders, abs=0.02)


def test_unknown_names_are_refused(shades, tmp_path, fails):
    write(tmp_path / "more/a", 3, 30)
    write(tmp_path / "more/bb", 3, 120)
    flow = ImageFlow.from_pretrained(shades / "run/model")
    with pytest.raises(UserError, match=r"knows no class 'bb'.* It knows a, b, c"):
        ImageInput(tmp_path / "more", flow)
    np.savez(tmp_path / "some.npz", images=np.zeros((3, 8, 8), np.uint8), labels=np.arange(3))
    with pytest.raises(UserError, match="knows no class '0'"):
        ImageInput(tmp_path / "some.npz", flow)
    words = ["--model", str(shades / "run"), "--out", str(tmp_path / "x"), "--count", "2", "--label"]
    assert "knows no class 'd'" in fails(2, command(sample), [*words, "d"])
    assert "knows no class '3'" in fails(2, command(sample), [*words, "3"])


def test_a_number_stands_for_a_class_only_where_no_class_is_called_by_one():
    named = RealNVP(8, 1, scales=1, blocks=1, width=4, classes=["x", "y"])
    assert [named.class_number(name) for name in ("x", "y", "0", "1")] == [0, 1, 0, 1]
    numbered = RealNVP(8, 1, scales=1, blocks=1, width=4, classes=["1", "2"])
    assert [numbered.class_number(name) for name in ("1", "2")] == [0, 1]
    with pytest.raises(UserError, match="knows no class '0'"):
        numbered.class_number("0")


def test_names_survive_saving_and_models_without_names_are_read(tmp_path):
    named = RealNVP(8, 1, scales=1, blocks=1, width=4, classes=["x", "y"])
    named.save_pretrained(tmp_path / "named")
    assert ImageFlow.from_pretrained(tmp_path / "named").class_names == ("x", "y")
    RealNVP(8, 1, scales=1, blocks=1, width=4, classes=2).save_pretrained(tmp_path / "older")
    older = ImageFlow.from_pretrained(tmp_path / "older")
    assert (older.classes, older.class_names) == (2, None)


def test_classes_of_a_model_without_names_are_matched_only_where_all_are_there(tmp_path, capsys):
    older = RealNVP(8, 1, scales=1, blocks=1, width=4, classes=2)
    for name, grey in GREYS.items():
        write(tmp_path / "three" / name, 2, grey)
    with pytest.raises(UserError, match="has 3 classes, the model 2 whose names are not known"):
        ImageInput(tmp_path / "three", older)
    write(tmp_path / "two/a", 2, 3)
    write(tmp_path / "two/b", 2, 3)
    batches = list(ImageInput(tmp_path / "two", older).batches(4))
    assert torch.cat([batch["context"] for batch in batches]).tolist() == [0, 0, 1, 1]
    assert "count in their order" in capsys.readouterr().err


def test_training_on_keeps_the_names(shades, tmp_path, capsys):
    starts_where_it_ended(train, shades / "recipe.yaml", shades / "run", tmp_path / "on")
    prepare(str(shades / "bc"), tmp_path / "bc.h5")
    words = ["--config", str(shades / "recipe.yaml"), "--from", str(shades / "run"), "--model.learning_rate", "0"]
    words += ["--model.ema_decay", "0", "--trainer.max_epochs", "1", "--data.batch_size", "8"]
    command(train)([*words, "--data.store", str(tmp_path / "bc.h5"), "--out", str(tmp_path / "some")])
    facts = json.loads((tmp_path / "some/model/training.json").read_text())
    whole = json.loads((shades / "run/model/training.json").read_text())
    assert facts["val"]["value"] == pytest.approx(whole["val"]["value"], abs=0.3)
    assert ImageFlow.from_pretrained(tmp_path / "some/model").class_names == ("a", "b", "c")
