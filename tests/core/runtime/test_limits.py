"""Untrusted configs of model folders: limited memory and time, and errors that name the argument."""

import contextlib
import json
import random
import resource
import shutil
import time
from pathlib import Path

import pytest

from arflows.core.runtime.errors import UserError
from arflows.core.runtime.limits import LARGEST_SIZE
from arflows.core.runtime.pretrained import Pretrained
from tests.golden_models import KINDS

pytestmark = pytest.mark.report

MODELS = Path(__file__).parents[2] / "golden" / "models_v1"
HUGE = [0, 1, 7, 100, 4096, 10_000, 65_536, 999_999, LARGEST_SIZE, 1_048_576, 10_000_000, 2**31, 2**63, 10**30]
OTHER = [None, True, False, -1, -(10**9), 0.5, -2.5, 1e300, "4", "", "relu", [], {}, [1, 2], [10**6] * 8, {"a": 1}]


def edited(name, folder, **arguments):
    """A golden model with other arguments."""
    shutil.copytree(MODELS / name, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    config["arguments"].update(arguments)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("realnvp", {"blocks": 10_000_000}),
        ("realnvp", {"blocks": 999_999}),
        ("realnvp", {"width": 1_000_000}),
        ("realnvp", {"image_size": 1_048_576}),
        ("realnvp", {"image_size": 1_000_000}),
        ("glow", {"steps": 999_999}),
        ("glow", {"width": 1_000_000}),
        ("flowpp", {"blocks": 999_999}),
        ("flowpp", {"image_size": [1_000_000, 4]}),
        ("tarflow", {"image_size": 1_000_000}),
        ("tarflow", {"layers": 999_999}),
        ("maf", {"transforms": 999_999}),
        ("maf", {"hidden_features": [1_000_000]}),
        ("maf", {"features": 1_000_000}),
        ("nsf", {"bins": 999_999, "bound": 1e6}),
        ("waveflow", {"flows": 999_999}),
        ("waveflow", {"layers": 999_999}),
        ("waveflow", {"height": 1_000_000}),
        ("molecules", {"width": 1_000_000}),
        ("molecules", {"layers": 999_999}),
    ],
)
def test_a_config_that_asks_for_more_than_the_weights_is_refused_at_once(name, arguments, tmp_path):
    folder = edited(name, tmp_path / "model", **arguments)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.thread_time()
    with pytest.raises(UserError) as caught:
        KINDS[name].from_pretrained(folder)
    assert time.thread_time() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 * 1024
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(KINDS))
def test_every_golden_model_is_within_the_limits(name):
    KINDS[name].from_pretrained(MODELS / name)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"width": "64"}, "width must be a whole number from 0 to 1,000,000, got '64'"),
        ({"width": -4}, "width must be a whole number from 0 to 1,000,000, got -4"),
        ({"width": 4.0}, "width must be a whole number .*, got 4.0"),
        ({"width": True}, "width must be a whole number .*, got True"),
        ({"image_size": [4, -4]}, "image_size must be .* or a list, each value a whole number .*, got \\[4, -4\\]"),
        ({"image_size": {}}, "image_size must be"),
        ({"scales": []}, "scales must be .* or null, got \\[\\]"),
        ({"depth": 4}, "another domain or of a newer version, for a RealNVP here has no depth but image_size"),
    ],
)
def test_arguments_are_told_by_name(arguments, words, tmp_path):
    folder = edited("realnvp", tmp_path / "model", **arguments)
    with pytest.raises(UserError, match=f"arguments do not fit RealNVP: .*{words}"):
        KINDS["realnvp"].from_pretrained(folder)


def test_a_model_that_could_not_be_read_again_is_not_saved(tmp_path):
    class Deep(Pretrained):
        def __init__(self, width: int) -> None:
            super().__init__()

    with pytest.raises(UserError, match="width must be a whole number"):
        Deep(-1).save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_model_of_another_domain_is_refused_by_that_fact():
    with pytest.raises(UserError, match="is of another domain"):
        KINDS["realnvp"].from_pretrained(MODELS / "maf")


@pytest.mark.parametrize("text", ['{"a": ' + "[" * 100_000, '{"format_version": ' + "9" * 10_000 + "}"])
def test_texts_that_python_gives_up_on_are_one_sentence(text, tmp_path):
    folder = edited("nsf", tmp_path / "model")
    (folder / "config.json").write_text(text)
    with pytest.raises(UserError, match="not valid JSON"):
        KINDS["nsf"].from_pretrained(folder)


@pytest.mark.parametrize("cases", [150, pytest.param(10_000, marks=[pytest.mark.nightly, pytest.mark.timeout(14_400)])])
def test_edits_of_valid_configs(cases, tmp_path):
    """Each is one sentence or the model, within the limits of time and memory."""
    source = random.Random(0)
    folders = {name: edited(name, tmp_path / name) for name in KINDS}
    whole = {name: json.loads((folder / "config.json").read_text()) for name, folder in folders.items()}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(cases):
        name = source.choice(sorted(folders))
        config = json.loads(json.dumps(whole[name]))
        for _ in range(source.choice([1, 1, 2, 3])):
            _edit(config["arguments"], source)
        (folders[name] / "config.json").write_text(json.dumps(config))
        start = time.thread_time()
        with contextlib.suppress(UserError):
            KINDS[name].from_pretrained(folders[name])
        assert time.thread_time() - start < 5, config
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 * 1024


def _edit(settings, source):
    """Change, add or remove a value, at any depth."""
    if not settings:
        settings["more"] = source.choice(OTHER)
        return
    key = source.choice(sorted(settings))
    if isinstance(settings[key], dict) and source.random() < 0.8:
        _edit(settings[key], source)
        return
    match source.choice(["huge", "huge", "other", "list", "remove", "add"]):
        case "huge":
            settings[key] = source.choice(HUGE)
        case "other":
            settings[key] = source.choice(OTHER)
        case "list":
            settings[key] = [source.choice(HUGE) for _ in range(source.randrange(1, 4))]
        case "remove":
            del settings[key]
        case "add":
            settings["more"] = source.choice(OTHER)
