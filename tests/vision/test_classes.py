import json
from pathlib import Path

import numpy as np
import pytest
import torch

from arflows.core.runtime.errors import UserError
from arflows.data.image_sources import ArrayExamples
from arflows.data.store_writer import write_store
from arflows.vision import TarFlow
from arflows.vision.classes import class_names, class_number, draw_classes, matched_labels
from arflows.vision.inputs import ImageInput
from arflows.vision.representation import ImageSpec

NAMES = ["a", "b", "c"]


@pytest.fixture
def flow():
    return TarFlow(8, 1, patch_size=4, width=16, blocks=2, layers=1, heads=2, classes=3)


def test_images_are_matched_by_the_names_of_their_classes(flow, tmp_path):
    images = np.zeros((4, 1, 8, 8), np.uint8)
    fields = {"images": images, "labels": np.array([0, 1, 1, 0])}
    spec = ImageSpec(8, 8, 1).as_dict()
    path = tmp_path / "bc.h5"
    write_store(path, domain="vision", spec=spec, splits={"test": fields}, categories={"labels": ["c", "b"]})
    (batch,) = ImageInput(path, flow, classes=NAMES).batches(4)
    assert batch["context"].tolist() == [2, 1, 1, 2]
    (batch,) = ImageInput(path, flow, classes=NAMES, label="a").batches(4)
    assert batch["context"].tolist() == [0] * 4
    with pytest.raises(UserError, match="images of the class 'c', which the model does not know; it knows a, b"):
        ImageInput(path, flow, classes=["a", "b"])


def test_unknown_names():
    assert [class_number(label, NAMES) for label in ("c", None)] == [2, None]
    assert class_number(2, []) == 2
    assert class_number(1, ["1", "2"]) == 0
    with pytest.raises(UserError, match="no class 'd'"):
        class_number("d", NAMES)
    with pytest.raises(UserError, match="keeps no class names"):
        class_number("d", [])
    unused = ArrayExamples(np.zeros((1, 8, 8, 1), np.uint8), np.array([1]), ("z", "b"))
    assert matched_labels(Path("x"), unused.labels, unused.classes, NAMES).tolist() == [-1, 1]


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_out_of_range_are_one_sentence(flow, label):
    with pytest.raises(UserError, match=f"labels run from .*{label}.*: give class numbers from 0 to 2"):
        flow.log_prob(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, label]))


def test_classes_are_drawn_in_the_proportions_of_the_training_data(tmp_path, flow):
    flow.save_pretrained(tmp_path / "model")
    assert draw_classes(str(tmp_path / "model"), 10, 0) is None
    facts = {"data": {"classes": NAMES, "class_counts": [190, 0, 10]}}
    (tmp_path / "model" / "training.json").write_text(json.dumps(facts))
    assert class_names(str(tmp_path / "model")) == NAMES
    drawn = torch.bincount(draw_classes(str(tmp_path / "model"), 2000, 0), minlength=3)
    assert drawn[1] == 0
    assert 60 < drawn[2] < 140
