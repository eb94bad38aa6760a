"""Short hashes of settings, by which a model recognises data prepared with other settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def canonical_json(settings: Mapping[str, Any]) -> str:
    """Write settings as JSON in the one form that equal settings share: sorted keys, no spaces, no NaN.

    Raises:
        ValueError: A number is not finite.
        TypeError: A value has no JSON form.
    """
    return json.dumps(settings, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of the settings' canonical JSON."""
    return hashlib.sha256(canonical_json(settings).encode()).hexdigest()[:16]
