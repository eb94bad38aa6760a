"""Image sets built from scikit-learn's data; they need no network and no files."""

from __future__ import annotations

import numpy as np

from arflows.data.image_sources import ArrayExamples, ImageSource

PATCH = 32
BLOCK = (71, 64)  # height and width of the regions that are kept apart
BLOCKS = {"train": 96, "val": 12, "test": 12}
PATCHES = {"train": 4096, "val": 512, "test": 512}
DIGITS = {"train": 1437, "val": 180, "test": 180}


def digits() -> ImageSource:
    """Return 1,797 handwritten digits, 8×8, one channel, in ten classes; the split is always the same.

    Their grey values are 0…16. Value v is written as round(255 v / 16), so that 17 of the 256 levels occur and every
    viewer shows the digits properly. A figure in bits/dim is therefore to be compared with other figures on these
    digits only: an 8-bit model has the levels in between to spare.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., np.newaxis]
    order = np.random.default_rng(0).permutation(len(images))
    ends = np.cumsum(list(DIGITS.values()))
    classes = tuple(map(str, range(10)))
    splits = {
        split: ArrayExamples(images[chosen], bunch.target[chosen].astype(np.int64), classes)
        for split, chosen in zip(DIGITS, np.split(order, ends[:-1]), strict=True)
    }
    return ImageSource("digits", splits, {"origin": "scikit-learn load_digits (UCI ML hand-written digits)"})


def patches() -> ImageSource:
    """Return 5,120 natural patches, 32×32×3, cut from scikit-learn's two photographs; always the same.

    Each photograph is divided into 60 blocks of 71×64 pixels, each block belongs to one split, and a patch lies within
    one block: no pixel of a training patch occurs in a validation or test patch.
    """
    from sklearn.datasets import load_sample_images

    generator = np.random.default_rng(0)
    height, width = BLOCK
    blocks = [
        photo[top : top + height, left : left + width]
        for photo in load_sample_images().images
        for top in range(0, photo.shape[0] - height + 1, height)
        for left in range(0, photo.shape[1] - width + 1, width)
    ]
    order = generator.permutation(len(blocks))
    ends = np.cumsum(list(BLOCKS.values()))
    splits = {}
    for split, chosen in zip(BLOCKS, np.split(order, ends[:-1]), strict=True):
        cut = np.empty((PATCHES[split], PATCH, PATCH, 3), np.uint8)
        for index in range(len(cut)):
            block = blocks[generator.choice(chosen)]
            top, left = generator.integers(height - PATCH + 1), generator.integers(width - PATCH + 1)
            cut[index] = block[top : top + PATCH, left : left + PATCH]
        splits[split] = ArrayExamples(cut)
    return ImageSource("patches", splits, {"origin": "scikit-learn load_sample_images (china.jpg, flower.jpg)"})
