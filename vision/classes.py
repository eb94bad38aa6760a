"""Class names of a class-conditional model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from arflows.core.runtime.errors import UserError, did_you_mean
from arflows.core.runtime.pretrained import model_folder


def class_names(model: str) -> list[str]:
    """Return the names of the classes a model was trained on, by their numbers; empty where they are not known.

    Args:
        model: Folder of a model or of a training run, or a model's name on the Hugging Face Hub.
    """
    return [str(name) for name in _data_facts(model).get("classes", [])]


def draw_classes(model: str, count: int, seed: int) -> Int64[Tensor, " count"] | None:
    """Draw classes in the proportions of the training data; None where these are not known.

    Args:
        model: See `class_names`.
        count: How many.
        seed: Seed of the draw.
    """
    counts = _data_facts(model).get("class_counts")
    if not counts:
        return None
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(torch.tensor(counts, dtype=torch.float64), count, True, generator=generator)


def _data_facts(model: str) -> dict[str, Any]:
    facts = Path(model_folder(model)) / "training.json"
    return dict(json.loads(facts.read_text(encoding="utf-8")).get("data", {})) if facts.is_file() else {}


def class_number(label: int | str | None, names: Sequence[str]) -> int | None:
    """Return the number of a class.

    Args:
        label: Its name, or its number where the model has no names; None for no class.
        names: Names of the model's classes.

    Raises:
        UserError: The model has no such class.
    """
    if label is None or (isinstance(label, int) and not names):
        return label
    if names and str(label) not in names:
        shown = f"{', '.join(names[:20])}{', …' if len(names) > 20 else ''}"
        raise UserError(f"the model has no class {str(label)!r}.{did_you_mean(str(label), names)} It has {shown}.")
    if not names:
        raise UserError(f"the model keeps no class names: give --label as a number, not {label!r}.")
    return list(names).index(str(label))


def matched_labels(
    source: Path, labels: Int64[np.ndarray, " images"], given: Sequence[str], names: Sequence[str]
) -> Int64[np.ndarray, " classes"]:
    """Return, for each class number of some images, the model's number of the class of that name; -1 where unused.

    Args:
        source: The images in messages.
        labels: Class number of each image.
        given: Names of the images' classes.
        names: Names of the model's classes.

    Raises:
        UserError: An image is of a class that the model does not know.
    """
    numbers = {name: number for number, name in enumerate(names)}
    used = np.unique(labels)
    if unknown := [given[number] for number in used if given[number] not in numbers]:
        shown = f"{', '.join(names[:20])}{', …' if len(names) > 20 else ''}"
        raise UserError(
            f"{source} has images of the class {unknown[0]!r}, which the model does not know; it knows {shown}: leave "
            "these images out, or name the class of all with --label."
        )
    return np.array([numbers.get(name, -1) for name in given], np.int64)
