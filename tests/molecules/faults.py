"""A small data set and run of molecules, for faults to be injected into; see `tests.faults`."""

import gzip
import itertools
from pathlib import Path

import yaml

from tests.faults.small import Small


def small(folder: Path) -> Small:
    parts = itertools.product(
        ("C", "N", "O", "F", "Cl", "CC"), ("C", "N", "CO", "C=C"), ("C", "O", "CN", "C#C", "c1ccccc1")
    )
    (folder / "molecules.smi").write_text("".join(f"{''.join(part)}\n" for part in parts))
    recipe = {
        "model": {
            "flow": {
                "class_path": "arflows.molecules.MoleculeFlow",
                "init_args": {"width": 8, "layers": 1, "heads": 2},
            },
            "learning_rate": 0.01,
            "schedule": "cosine",
            "warmup_steps": 5,
            "ema_decay": 0.9,
        },
        "data": {"batch_size": 4},
        "trainer": {"max_epochs": 2, "log_every_n_steps": 1},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for name in ("bomb.smi.gz", "bomb.sdf.gz"):
        with gzip.open(folder / name, "wb") as file:
            for _ in range(100):
                file.write(b"C" * (1 << 20))
    (folder / "cut.smi.gz").write_bytes(gzip.compress(b"CCO\n" * 1000)[:-10])
    (folder / "binary.smi").write_bytes(bytes(range(256)))
    (folder / "long.smi").write_text("C(C)" * 100_000 + "\n")
    hostile = {
        "gzip bomb of SMILES": "bomb.smi.gz",
        "gzip bomb of a mol block": "bomb.sdf.gz",
        "truncated gzip": "cut.smi.gz",
        "binary called SMILES": "binary.smi",
        "SMILES of a hundred thousand branches": "long.smi",
    }
    return Small(
        "molecules",
        ["--source", str(folder / "molecules.smi"), "--workers", "1"],
        folder / "recipe.yaml",
        ["--molecules", str(folder / "molecules.smi"), "--workers", "1"],
        {what: ["--source", str(folder / name), "--workers", "1"] for what, name in hostile.items()},
    )
