"""Two processes do what one does: sample, score and evaluate, with gloo, on the CPU."""

import json

import pytest

from arflows.core.commands.cli import main
from arflows.core.runtime.pretrained import load_model
from arflows.molecules import sample
from arflows.molecules.model import GraphFlow
from tests.launch import in_processes


@pytest.fixture(scope="module")
def outputs(run, store, tmp_path_factory):
    """Folders with what one process wrote, and two; the latter go on with molecules that one process has begun."""
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    model = ["--model", run, "--device", "cpu", "--workers", "1"]
    molecules = one / "library.smi"
    molecules.write_text("OCC\nC1CC\nCCO\nCN\nCC.O\nCCF\nCCC\n")

    def verbs(out):
        drawn = [*model, "--seed", "3", "--batch_size", "10"]
        yield "molecules", "sample", [*drawn, "--count", "45", "--out", out / "drawn.csv", "--grid", out / "a.png"]
        yield "molecules", "sample", [*drawn, "--count", "20", "--masks", "false", "--out", out / "raw.smi"]
        words = ["--molecules", molecules, "--batch_size", "2", "--orders", "2", "--out", out / "scores.csv"]
        yield "molecules", "score", [*model, *words]
        words = ["--store", store, "--samples", "60", "--fcd", "false", "--batch_size", "16"]
        yield "molecules", "evaluate", [*model, *words, "--out", out / "result.json"]

    for domain, verb, words in verbs(one):
        main([domain, verb, *map(str, words)])
    first, *others = verbs(two)
    begin(two / "drawn.csv", one / "drawn.csv", run)
    told = in_processes(two, 2, (*first[:2], [*first[2], "--resume", "true"]), *others)
    return one, two, told


def begin(out, whole, run):
    """Leaves what an interruption after twenty molecules would leave."""
    content = b"".join(whole.read_bytes().splitlines(keepends=True)[:21])
    part = sample.Part(out, {}, resume=False)
    part.part.write_bytes(content + b"torn")
    model = load_model(GraphFlow, str(run), "cpu").checksum()
    options = {"model": model, "count": 45, "property": None, "masks": True, "fragment": None, "min_atoms": 1}
    options |= {"fill_attachments": False, "max_atoms": None, "temperature": 1.0, "seed": 3}
    part.progress.write_text(json.dumps({"options": options, "drawn": 20, "valid": 20, "bytes": len(content)}))


def test_there_is_one_ordered_output(outputs):
    one, two, told = outputs
    names = {path.name for path in one.iterdir()} - {"library.smi"}
    assert {path.name for path in two.iterdir()} == names
    for name in names - {"result.json"}:
        assert (two / name).read_bytes() == (one / name).read_bytes(), name
    assert len((two / "drawn.csv").read_text().splitlines()) == 46
    assert told.count("45 of 45 molecules") == 1


def test_figures_are_the_same(outputs):
    first, second = (json.loads((out / "result.json").read_text()) for out in outputs[:2])
    speeds = {"samples_per_second", "seconds", "hardware", "software", "training", "options"}
    assert len(first.keys() - speeds) > 10
    for name in first.keys() - speeds:
        assert first[name] == second[name], name
