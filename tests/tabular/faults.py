"""A small data set and run of rows, for faults to be injected into; see `tests.faults`."""

from pathlib import Path

import h5py
import numpy as np
import yaml

from tests.faults.hostile import npz_bomb, pickled
from tests.faults.small import Small


def small(folder: Path) -> Small:
    np.savetxt(folder / "rows.csv", np.random.default_rng(0).normal(size=(500, 3)), delimiter=",")
    flow = {
        "class_path": "arflows.core.flows.NSF",
        "init_args": {"features": 3, "transforms": 2, "hidden_features": [16]},
    }
    recipe = {
        "model": {"flow": flow, "learning_rate": 0.01, "schedule": "cosine", "warmup_steps": 5, "ema_decay": 0.9},
        "data": {"batch_size": 20},
        "trainer": {"max_epochs": 2, "log_every_n_steps": 1},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    npz_bomb(folder / "bomb.npz", "train")
    pickled(folder / "pickled.npz", "train")
    with h5py.File(folder / "link.h5", "w") as file:
        file["train"] = h5py.ExternalLink(str(folder / "rows.h5"), "/train")
    (folder / "cut.csv").write_text("a,b\n1,2\n3")
    hostile = {
        "zip bomb": "bomb.npz",
        "pickle in .npz": "pickled.npz",
        "HDF5 external link": "link.h5",
        "truncated table": "cut.csv",
    }
    return Small(
        "tabular",
        ["--source", str(folder / "rows.csv")],
        folder / "recipe.yaml",
        ["--rows", str(folder / "rows.csv")],
        {what: ["--source", str(folder / name)] for what, name in hostile.items()},
    )
