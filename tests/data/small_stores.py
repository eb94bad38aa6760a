"""Content of the stores of these tests."""

import numpy as np

SPEC = {"height": 4, "width": 4, "channels": 3}


def arrays(count=10, seed=0):
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (count, 3, 4, 4), dtype=np.uint8)
    return {"images": images, "labels": np.arange(count)}


def only(path):
    """The store is all there is in its folder: nothing half-written beside it."""
    return [entry.name for entry in path.parent.iterdir()] == [path.name]
