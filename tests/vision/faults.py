"""A small data set and run of images, for faults to be injected into; see `tests.faults`."""

from pathlib import Path

import numpy as np
import yaml

from tests.faults.hostile import npz_bomb, pickled
from tests.faults.small import Small


def small(folder: Path) -> Small:
    flow = {
        "class_path": "arflows.vision.Glow",
        "init_args": {"image_size": 8, "channels": 1, "levels": 1, "steps": 2, "width": 8, "classes": 10},
    }
    recipe = {
        "model": {"flow": flow, "learning_rate": 0.001, "schedule": "cosine", "warmup_steps": 5, "ema_decay": 0.9},
        "data": {"batch_size": 16, "flip": True},
        "trainer": {"max_epochs": 2, "log_every_n_steps": 1},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    np.savez(folder / "some.npz", images=np.random.default_rng(0).integers(0, 256, (16, 1, 8, 8), np.uint8))
    npz_bomb(folder / "bomb.npz", "images")
    pickled(folder / "pickled.npz", "images")
    (folder / "broken").mkdir()
    (folder / "broken" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
    hostile = {"zip bomb": "bomb.npz", "pickle in .npz": "pickled.npz", "broken images": "broken"}
    return Small(
        "vision",
        ["--source", "digits", "--limit", "320"],
        folder / "recipe.yaml",
        ["--images", str(folder / "some.npz"), "--label", "3"],
        {what: ["--source", str(folder / name)] for what, name in hostile.items()},
    )
