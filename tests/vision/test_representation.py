import pytest
import torch

from arflows.core.runtime.errors import UserError
from arflows.vision.representation import ImageSpec

SPEC = ImageSpec(32, 32, 3)


def test_there_and_back():
    assert ImageSpec.from_dict(SPEC.as_dict()) == SPEC
    assert SPEC.dims == 3072
    assert SPEC.shape == (3, 32, 32)


def test_fingerprint_and_differences():
    assert SPEC.fingerprint() == ImageSpec(32, 32, 3, 8).fingerprint()
    others = [ImageSpec(64, 32, 3), ImageSpec(32, 64, 3), ImageSpec(32, 32, 1), ImageSpec(32, 32, 3, 5)]
    assert len({spec.fingerprint() for spec in [SPEC, *others]}) == 5
    assert SPEC.differences(SPEC) == []
    assert SPEC.differences(ImageSpec(64, 32, 1)) == ["height 32 ≠ 64", "channels 3 ≠ 1"]


@pytest.mark.parametrize("settings", [{"height": 8, "width": 8}, SPEC.as_dict() | {"colour_space": "lab"}])
def test_settings_of_another_version(settings):
    with pytest.raises(UserError, match="settings must be height, width, channels, bits"):
        ImageSpec.from_dict(settings)


def test_right_images_pass():
    SPEC.check(torch.zeros(0, 3, 32, 32, dtype=torch.uint8))
    SPEC.check(torch.full((2, 3, 32, 32), 255, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 32, 32, dtype=torch.uint8), r"four axes .* images\[None\]"),
        (torch.zeros(2, 3, 64, 32, dtype=torch.uint8), "height 32 ≠ 64;.*--image_size 32"),
        (torch.zeros(2, 1, 32, 32, dtype=torch.uint8), "channels 3 ≠ 1"),
        (torch.zeros(2, 32, 32, 3, dtype=torch.uint8), "channels come second"),
        (torch.zeros(2, 3, 32, 32), r"\(255 \* images\)\.round\(\)"),
        (torch.full((2, 3, 32, 32), torch.nan), "6,144 of 6,144 pixels are NaN or infinite"),
        (torch.full((2, 3, 32, 32), torch.inf), "NaN or infinite"),
        (torch.full((2, 3, 32, 32), -1.5), "run from -1.5 to -1.5, outside"),
        (torch.full((2, 3, 32, 32), 256), "run from 256"),
        (torch.full((2, 3, 32, 32), 200), r"give torch.uint8, images.to\(torch.uint8\)"),
        (torch.full((2, 3, 32, 32), 200.0), r"images.to\(torch.uint8\)"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.bool), "give torch.uint8"),
    ],
)
def test_wrong_images_are_refused(images, message):
    with pytest.raises(UserError, match=message):
        SPEC.check(images)
