"""The page of results, from measurements of any domain."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def make_page():
    spec = importlib.util.spec_from_file_location("make_page", ROOT / "results/make_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_that_of_the_files(make_page):
    assert make_page.page() == (ROOT / "docs/results.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("domain", "noun"), [("tabular", "rows"), ("elsewhere", "examples")])
def test_a_domain_without_lines_of_its_own_has_its_figures_told(make_page, tmp_path, domain, noun):
    [measured] = (ROOT / "results/vision").glob("made_mnist-*.json")
    result = json.loads(measured.read_text())
    for name in ("bits_per_dim", "logit_space_nats"):
        result.pop(name)
    result["log_likelihood"] = {"value": -1.25, "standard_error": 0.5, "unit": "nats", "count": 7}
    folder = tmp_path / "results" / domain
    folder.mkdir(parents=True)
    (folder / "moons.json").write_text(json.dumps(result))
    shutil.copy(measured.with_suffix(".png"), folder / "moons.png")
    page = make_page.page(tmp_path)
    assert "**-1.25 ± 0.5 (s.e.)** nats, over 7" in page
    assert f" {noun} available" in page
    assert f"(../results/{domain}/moons.png)" in page
