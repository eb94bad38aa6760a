import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ProgressBar
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from arflows.core.likelihood import Reference
from arflows.vision import train
from arflows.vision.model import ImageFlow, RealNVP
from arflows.vision.prepare import prepare
from tests.launch import ARFLOWS, command


def trains(capsys, *words):
    """Runs the command; returns its exit code and the last line on standard error."""
    try:
        command(train)([str(word) for word in words])
    except SystemExit as ending:
        return ending.code, capsys.readouterr().err.strip().splitlines()[-1]
    return 0, ""


def start(*words, **options):
    """Runs the command as a process of its own."""
    command = [sys.executable, "-m", "arflows.core.commands.cli", "vision", "train", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, **options
    )


def finish(process, timeout=120):
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def wait_for(path, process, timeout=60):
    until = time.monotonic() + timeout
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)


# ---------------------------------------------------------------------------------------------- what a run leaves


def test_a_run_leaves_model_checkpoints_logs_samples_and_its_options(run_folder):
    left = {path.relative_to(run_folder).as_posix() for path in run_folder.rglob("*") if path.is_file()}
    assert left >= {
        "config.yaml",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "logs/version_0/metrics.csv",
        "model/config.json",
        "model/model.safetensors",
        "model/training.json",
        "samples/0000005.png",
        "samples/0000010.png",
    }
    assert not [name for name in left if ".tmp" in name]


def test_the_model_is_the_averaged_weights_of_the_best_checkpoint(run_folder):
    model = ImageFlow.from_pretrained(run_folder / "model")
    assert isinstance(model, RealNVP)
    saved = torch.load(run_folder / "checkpoints/best.ckpt", weights_only=True)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, saved["state_dict"][f"flow.{name}"], rtol=0, atol=0)
    weights = [name for name in saved["state_dict"] if name.startswith("flow.bijection") and name.endswith("weight_v")]
    assert any(not torch.equal(saved["state_dict"][n], saved["current_model_state"][n]) for n in weights)


def test_training_facts_tell_how_the_model_came_about(run_folder, digits):
    facts = json.loads((run_folder / "model/training.json").read_text())
    assert facts["epochs"] == 2
    assert facts["steps"] == 10
    assert facts["skipped_steps"] == 0
    assert facts["seconds"] > 0
    assert facts["val"]["kind"] == "bound"
    assert facts["val"]["count"] == 160
    assert facts["data"]["store"] == str(digits)
    assert facts["data"]["counts"]["train"] == 160
    assert {"arflows", "torch", "commit"} <= facts["software"].keys()
    assert facts["hardware"]["device"] == "cpu"
    reference = Reference.load(run_folder)
    assert len(reference.scores) == 160
    assert reference.mean == pytest.approx(facts["val"]["value"], abs=0.5)


def test_tensorboard_has_the_curves_and_the_pictures(run_folder):
    events = EventAccumulator(str(run_folder / "logs")).Reload()
    assert {"val/bits_per_dim", "train/gradient_norm"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Images("samples")] == [5, 10]


def test_the_saved_options_repeat_the_run_exactly(run_folder, tmp_path, capsys):
    assert trains(capsys, "--config", run_folder / "config.yaml", "--out", tmp_path / "again")[0] == 0
    first, again = (ImageFlow.from_pretrained(out / "model") for out in (run_folder, tmp_path / "again"))
    for name, tensor in first.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=0, atol=0)
    assert yaml.safe_load((run_folder / "config.yaml").read_text())["resume"] is False


def test_print_config_prints_a_config(recipe, capsys):
    with pytest.raises(SystemExit) as ending:
        command(train)(["--config", str(recipe), "--out", "x", "--print_config"])
    assert ending.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["model"]["flow"]["init_args"]["width"] == 4
    assert printed["model"]["ema_decay"] == 0.999  # what the recipe leaves open is there too


# ---------------------------------------------------------------------------------------------- resuming


def test_resuming_goes_on_and_equals_the_uninterrupted_run(recipe, tmp_path, capsys):
    words = ["--config", recipe, "--trainer.max_epochs"]
    assert trains(capsys, *words, 1, "--out", tmp_path / "parts")[0] == 0
    assert trains(capsys, *words, 3, "--out", tmp_path / "parts", "--resume")[0] == 0
    assert trains(capsys, *words, 3, "--out", tmp_path / "whole")[0] == 0
    parts, whole = (ImageFlow.from_pretrained(tmp_path / name / "model") for name in ("parts", "whole"))
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], tensor, rtol=0, atol=0)
    assert (tmp_path / "parts/logs/version_1/metrics.csv").is_file()
    assert json.loads((tmp_path / "parts/model/training.json").read_text())["epochs"] == 3


def test_ctrl_c_saves_ends_with_130_and_can_be_resumed(recipe, tmp_path):
    out = tmp_path / "run"
    process = start("--config", recipe, "--out", out, "--trainer.max_epochs", 100_000)
    wait_for(out / "checkpoints/last.ckpt", process)
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process)
    assert code == 130
    assert "--resume" in err
    assert "Traceback" not in err
    saved = torch.load(out / "checkpoints/last.ckpt", weights_only=True)
    epochs = saved["epoch"] + 2
    assert not (out / "model").exists()
    code, _, err = finish(start("--config", recipe, "--out", out, "--trainer.max_epochs", epochs, "--resume"))
    assert code == 0, err
    facts = json.loads((out / "model/training.json").read_text())
    assert facts["epochs"] == epochs
    assert facts["steps"] == 5 * epochs  # no step was lost or done twice


def test_sigterm_saves_too(recipe, tmp_path):
    out = tmp_path / "run"
    process = start("--config", recipe, "--out", out, "--trainer.max_epochs", 100_000)
    wait_for(out / "checkpoints/last.ckpt", process)
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == 128 + signal.SIGTERM
    torch.load(out / "checkpoints/last.ckpt", weights_only=True)


def test_a_finished_run_is_not_overwritten(recipe, run_folder, capsys):
    before = {path: path.stat().st_mtime_ns for path in run_folder.rglob("*")}
    code, message = trains(capsys, "--config", recipe, "--out", run_folder)
    assert code == 2
    assert "holds a finished run" in message
    code, message = trains(capsys, "--config", recipe, "--out", run_folder, "--resume")
    assert code == 2
    assert "finished after 2 epochs" in message
    assert {path: path.stat().st_mtime_ns for path in run_folder.rglob("*")} == before


@pytest.mark.report
def test_resuming_with_other_settings_names_them(recipe, run_folder, capsys):
    code, message = trains(
        capsys, "--config", recipe, "--out", run_folder, "--resume", "--model.flow.init_args.width", 8
    )
    assert code == 2
    assert "model.flow.init_args.width 8 ≠ 4" in message


@pytest.mark.parametrize(
    ("words", "bar"),
    [
        (["--trainer.enable_progress_bar", "true"], "ProgressLine"),
        (["--trainer.enable_progress_bar", "true", "--trainer.callbacks+=TQDMProgressBar"], "TQDMProgressBar"),
        (["--trainer.enable_progress_bar", "false"], "NoneType"),
    ],
)
def test_the_progress_bar_is_ours_whatever_is_installed(recipe, tmp_path, monkeypatch, words, bar):
    """Lightning would take rich's, which shows a run of max_epochs=-1 as "Epoch 0/-2"."""
    monkeypatch.setattr("lightning.pytorch.trainer.connectors.callback_connector._RICH_AVAILABLE", True)
    experiment = train.ImageExperiment(["--config", str(recipe), "--out", str(tmp_path / "new"), *words])
    assert type(experiment.trainer.progress_bar_callback).__name__ == bar
    assert sum(isinstance(callback, ProgressBar) for callback in experiment.trainer.callbacks) == (bar != "NoneType")


def test_there_must_be_something_to_resume(recipe, tmp_path, capsys):
    code, message = trains(capsys, "--config", recipe, "--out", tmp_path / "new", "--resume")
    assert code == 2
    assert "leave out --resume" in message
    assert not (tmp_path / "new").exists()


# ---------------------------------------------------------------------------------------------- classes, devices


def test_a_class_conditional_glow_trains_from_data_dependent_initialisation(recipe, tmp_path, capsys):
    flow = {
        "class_path": "arflows.vision.Glow",
        "init_args": {"image_size": 8, "channels": 1, "levels": 1, "steps": 1, "width": 4, "classes": 10},
    }
    words = ["--config", recipe, "--out", tmp_path, "--model.flow", json.dumps(flow), "--trainer.max_epochs", 1]
    assert trains(capsys, *words, "--model.learning_rate", 0)[0] == 0
    assert ImageFlow.from_pretrained(tmp_path / "model").classes == 10
    figure = json.loads((tmp_path / "model/training.json").read_text())["val"]
    # without it, pixels in [0, 1] would be scored by a standard normal density: more than 8 + log2(2 pi) / 2 bits
    assert figure["value"] < 8 + math.log2(2 * math.pi) / 2


def test_two_processes_train_one_model(recipe, tmp_path):
    """With gloo on the CPU; every process starts this command anew, as Lightning does on several GPUs."""
    out = tmp_path / "run"
    process = start("--config", recipe, "--out", out, "--trainer.devices", 2, "--trainer.max_epochs", 1)
    code, stdout, err = finish(process)
    assert code == 0, err
    facts = json.loads((out / "model/training.json").read_text())
    assert facts["hardware"]["processes"] == 2
    assert facts["steps"] == 2  # 160 images, 2 × 32 a step
    assert facts["val"]["count"] == 160
    assert stdout.count("is the trained model") == 1


@pytest.mark.slow
def test_torchrun_trains_and_agrees_to_stop(recipe, tmp_path):
    out = tmp_path / "run"
    words = ["--config", recipe, "--out", out, "--trainer.devices", 2, "--trainer.max_epochs", 100_000]
    started = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python", ARFLOWS]
    process = subprocess.Popen(
        [*started, "vision", "train", *map(str, words)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    wait_for(out / "checkpoints/last.ckpt", process, timeout=120)
    process.send_signal(signal.SIGINT)
    assert finish(process)[0] != 0
    saved = torch.load(out / "checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] > 0


# ---------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--data.store", "missing.h5"], "arflows vision prepare --source … --out missing.h5"),
        (["--model.flow.init_args.image_size", "16"], "model ≠ store: height 16 ≠ 8, width 16 ≠ 8"),
        (["--model.flow.init_args.channels", "3"], "model ≠ store: channels 3 ≠ 1"),
        (["--model.flow.init_args.classes", "3"], "set model.flow.init_args.classes to 10"),
        (["--model.flow.init_args.scales", "9"], "scales=9 does not fit"),
        (["--model.flow", "torch.nn.Linear"], "torch.nn.Linear is no class that a config may name"),
        (["--model.flow", "arflows.core.flows.MAF"], "not correspond to a subclass of ImageFlow"),
        (["--model.learning_rat", "1"], "Did you mean --model.learning_rate?"),
        (["--model.learning_rate", "fast"], "--model.learning_rate takes float, not 'fast'"),
        (["--model.ema_decay", "2"], "model.ema_decay is 2"),
        (["--data.batch_size", "1000"], "fewer than one batch of 1000"),
        (["--data.batch_size", "0"], "batch_size is 0"),
        (["--trainer.accelerator", "nonsense"], "nonsense"),
        (["--config", "nonsense"], "no file or recipe 'nonsense'"),
    ],
)
def test_bad_settings_are_one_sentence_and_leave_nothing(recipe, tmp_path, capsys, words, sentence):
    code, message = trains(capsys, "--config", recipe, "--out", tmp_path / "run", *words)
    assert code == 2
    assert sentence in message
    assert not (tmp_path / "run").exists()


def test_a_missing_option_is_named(capsys):
    code, message = trains(capsys, "--out", "run")
    assert code == 2
    assert "--data.store" in message


def test_a_config_with_settings_of_a_newer_version_names_them(recipe, tmp_path, capsys):
    newer = yaml.safe_load(recipe.read_text())
    newer["model"]["sharpness_aware"] = True
    path = tmp_path / "newer.yaml"
    path.write_text(yaml.safe_dump(newer))
    code, message = trains(capsys, "--config", path, "--out", tmp_path / "run")
    assert code == 2
    assert "sharpness_aware" in message


def test_a_truncated_store_is_refused(digits, recipe, tmp_path, capsys):
    path = tmp_path / "cut.h5"
    path.write_bytes(digits.read_bytes()[:-2000])
    code, message = trains(capsys, "--config", recipe, "--out", tmp_path / "run", "--data.store", path)
    assert code == 2
    assert "cut.h5" in message


def test_a_store_without_validation_images_trains(tmp_path, recipe, capsys):
    store = tmp_path / "no_val.h5"
    np.savez(tmp_path / "images.npz", images=np.random.default_rng(0).integers(0, 256, (64, 8, 8), np.uint8))
    prepare(str(tmp_path / "images.npz"), store, val_fraction=0)
    words = ["--config", recipe, "--out", tmp_path / "run", "--data.store", store, "--trainer.max_epochs", 1]
    assert trains(capsys, *words)[0] == 0
    assert json.loads((tmp_path / "run/model/training.json").read_text())["val"] is None
    ImageFlow.from_pretrained(tmp_path / "run/model")


def test_a_full_disk_is_one_sentence_and_leaves_no_partial_checkpoint(recipe, tmp_path):
    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))  # smaller than a checkpoint

    code, _, err = finish(start("--config", recipe, "--out", tmp_path / "run", preexec_fn=limited))
    assert code == 2
    assert "Traceback" not in err
    assert str(tmp_path / "run") in err.strip().splitlines()[-1]
    assert not list(Path(tmp_path).rglob("*.ckpt"))
