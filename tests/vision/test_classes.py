import json

import pytest
import torch

from arflows.core.runtime.errors import UserError
from arflows.vision import TarFlow
from arflows.vision.sample import draw_classes

pytestmark = pytest.mark.report


@pytest.fixture
def flow():
    return TarFlow(8, 1, patch_size=4, width=16, blocks=2, layers=1, heads=2, classes=["a", "b", "c"])


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_out_of_range_are_one_sentence(flow, label):
    with pytest.raises(UserError, match=f"labels run from .*{label}.*: give class numbers from 0 to 2"):
        flow.log_prob(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, label]))


def test_classes_are_drawn_in_the_proportions_of_the_training_data(tmp_path, flow):
    model = str(tmp_path / "model")
    flow.save_pretrained(model)
    assert draw_classes(model, flow, 10, 0) is None
    facts = {"data": {"class_counts": {"c": 10, "a": 190}}}
    (tmp_path / "model" / "training.json").write_text(json.dumps(facts))
    drawn = torch.bincount(draw_classes(model, flow, 2000, 0), minlength=3)
    assert drawn[1] == 0
    assert 60 < drawn[2] < 140
