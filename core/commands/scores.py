"""Output of ``score`` in every domain."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from arflows.core.likelihood import Reference
from arflows.core.runtime.files import replacing
from arflows.core.runtime.pretrained import FACTS_FILE


def write_scores(
    out: Path, columns: Mapping[str, Sequence[str]], scores: Float[np.ndarray, " count"], reference: Reference | None
) -> None:
    """Write a CSV file of scored examples, with the columns percentile and typicality added.

    Without a reference the two columns stay empty, and a message says so.

    Args:
        out: The file; replaced if it exists.
        columns: The other columns, such as names and scores.
        scores: Scores in the unit of the reference.
        reference: Scores of the model's training data.
    """
    compared = {
        "percentile": [f"{value:.2f}" for value in reference.percentile(scores)] if reference else [""] * len(scores),
        "typicality": (
            [f"{value:.6f}" for value in reference.typicality(scores[:, None])] if reference else [""] * len(scores)
        ),
    }
    with replacing(out) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*columns, *compared])
        writer.writerows(zip(*columns.values(), *compared.values(), strict=True))
    if reference is None:
        print(f"the model has no {FACTS_FILE}: percentile and typicality are left empty")
