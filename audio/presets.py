"""Sizes of models by name."""

from __future__ import annotations

from typing import Any

PREDICTIVE_PRESETS: dict[str, dict[str, Any]] = {
    "c128": {},
    # For CPUs that have little time for it.
    "c64": {"channels": 64, "dilations": (1, 2, 4, 8, 16, 32), "width": 32},
    "c32": {"channels": 32, "dilations": (1, 2, 4, 8, 16, 32), "width": 32, "order": 32},
}
"""Sizes of `PredictiveFlow`, by the channels of its first network."""

PRESETS: dict[str, dict[str, Any]] = {
    # Ping, Peng, Zhao & Song 2020 (arXiv:1912.01219), table 2.
    "h16_c64": {"height": 16, "channels": 64, "layers": 8, "flows": 8},
    "h16_c128": {"height": 16, "channels": 128, "layers": 8, "flows": 8},
    "h64_c64": {"height": 64, "channels": 64, "layers": 8, "flows": 8},
    # For CPUs: faster than speech on two cores; and what a demo can train.
    "h16_c32": {"height": 16, "channels": 32, "layers": 6, "flows": 6},
    "h8_c16": {"height": 8, "channels": 16, "layers": 5, "flows": 4},
}


def height_dilations(height: int, layers: int, kernel: int) -> list[int]:
    """Dilations of the layers down the rows, such that the last row sees the first.

    Powers of two, repeated after the fewest that see far enough: 1, 1, … for the published heights of 8 and 16,
    1, 2, 4, 1, 2, 4, 1, 2 for 32, 1, 2, 4, 8, 16, 1, 2, 4 for 64. Where no repetition sees all rows, none is repeated.

    Args:
        height: Number of rows.
        layers: Number of layers.
        kernel: Rows that a convolution sees.
    """
    for cycle in range(1, layers + 1):
        dilations = [2 ** (layer % cycle) for layer in range(layers)]
        if 1 + (kernel - 1) * sum(dilations) >= height:
            break
    return dilations
