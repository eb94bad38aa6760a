"""A small data set and run of tones, for faults to be injected into; see `tests.faults`."""

import struct
from pathlib import Path

import numpy as np
import yaml

from arflows.data.audio_files import write_wav
from tests.faults.small import Small

RATE, SAMPLES = 22_050, 4_096


def small(folder: Path) -> Small:
    (folder / "tones").mkdir()
    generator = np.random.default_rng(0)
    time = np.arange(SAMPLES) / RATE
    for number in range(66):
        tone = 0.3 * np.sin(2 * np.pi * generator.uniform(100, 1000) * time) + generator.normal(0, 0.01, SAMPLES)
        write_wav(folder / "tones" / f"{number:02}.wav", tone.astype(np.float32), RATE)
    flow = {
        "class_path": "arflows.audio.WaveFlow",
        "init_args": {"height": 4, "channels": 4, "layers": 2, "flows": 2},
    }
    recipe = {
        "model": {"flow": flow, "learning_rate": 0.003, "schedule": "cosine", "warmup_steps": 5, "ema_decay": 0.9},
        "data": {"batch_size": 3, "segment": 1024},
        "trainer": {"max_epochs": 2, "log_every_n_steps": 1},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    whole = (folder / "tones" / "00.wav").read_bytes()
    files = {
        "header that tells of four gigabytes": ("long.wav", whole[:40] + struct.pack("<I", 0xFFFFFF00) + whole[44:]),
        "header of a rate of four gigahertz": ("rate.wav", whole[:24] + struct.pack("<I", 0xFFFFFFFF) + whole[28:]),
        "truncated recording": ("cut.wav", whole[:3000]),
        "noise called FLAC": ("noise.flac", generator.bytes(5000)),
    }
    for name, content in files.values():
        (folder / name).write_bytes(content)
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "metadata.csv").write_text("../../../../../../etc/passwd|text|train\n")
    hostile = {what: name for what, (name, _) in files.items()} | {"metadata.csv that leads elsewhere": "elsewhere"}
    return Small(
        "audio",
        ["--source", str(folder / "tones"), "--val_fraction", "0.05", "--test_fraction", "0.05"],
        folder / "recipe.yaml",
        ["--speech", str(folder / "tones"), "--limit", "16"],
        {what: ["--source", str(folder / name)] for what, name in hostile.items()},
    )
