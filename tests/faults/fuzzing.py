"""Random input: number of cases, and files with changed bytes."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arflows.core.runtime.errors import UserError

REFUSALS = UserError
CASES = {"default": 200, "nightly": 10_000}
LIMIT_MS = 5_000
NIGHTLY = pytest.param(CASES["nightly"], marks=[pytest.mark.nightly, pytest.mark.timeout(7200)])


def fuzzed(*strategies):
    """Runs a test on made-up input, in few cases by default, in many by ``-m nightly``."""

    def decorate(function):
        @pytest.mark.parametrize("cases", [CASES["default"], NIGHTLY])
        def test(cases, tmp_path):
            def body(case):
                function(tmp_path, *case)

            settings(
                max_examples=cases,
                deadline=LIMIT_MS,
                suppress_health_check=list(HealthCheck),
                database=None,
                derandomize=True,
            )(given(st.tuples(*strategies))(body))()

        test.__doc__ = function.__doc__
        return test

    return decorate


@st.composite
def damaged(draw, contents):
    """A file with some bytes changed, cut, or put in."""
    content = bytearray(draw(st.sampled_from(contents)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        match draw(st.sampled_from(["change", "cut", "insert", "large"])):
            case "change":
                content[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case "cut":
                del content[at:]
            case "insert":
                content[at:at] = draw(st.binary(max_size=20))
            case "large":
                content[at : at + 4] = b"\xff\xff\xff\x7f"
    return bytes(content)
