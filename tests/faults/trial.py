"""A domain's small run under faults: commands, classification of faults, and comparison of results."""

import csv
import json
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.faults.commands import Command, Lost, NotSurvived
from tests.faults.small import Small


@dataclass
class Count:
    tried: int = 0
    survived: int = 0
    lost: int = 0
    remarks: list[str] = field(default_factory=list)


class Trial:
    """Shared state of the faults of one domain.

    Args:
        small: Its small run.
        folder: Scratch space.
        cycles: How often a run is killed and taken up again.
        seed: Decides when.
    """

    def __init__(self, small: Small, folder: Path, cycles: int, seed: int = 0) -> None:
        self.small = small
        self.folder = folder
        self.cycles = cycles
        self.random = random.Random(seed)
        self.store = folder / "store.h5"
        self.counts: dict[str, Count] = {}
        self.number = 0

    # ---------------------------------------------------------------------------------------------- commands

    def command(self, *words: str | Path, before: Callable[[], None] | None = None) -> Command:
        self.number += 1
        return Command([str(word) for word in words], self.folder / f"log{self.number}.txt", before)

    def prepare(self, out: Path, **options: Callable[[], None]) -> Command:
        return self.command(self.small.domain, "prepare", *self.small.prepare, "--out", out, "--overwrite", **options)

    def train(self, out: Path, *more: str, config: Path | None = None, **options: Callable[[], None]) -> Command:
        words = ["--config", config or self.small.recipe, "--data.store", self.store, "--out", out, "--save_every", "2"]
        words += ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.enable_progress_bar", "false"]
        resume = ["--resume"] if list((out / "checkpoints").glob("*.ckpt")) else []
        return self.command(self.small.domain, "train", *words, *resume, *more, **options)

    def score(self, model: Path, out: Path, **options: Callable[[], None]) -> Command:
        words = ["--model", model, *self.small.score, "--out", out, "--device", "cpu"]
        return self.command(self.small.domain, "score", *words, **options)

    def succeeds(self, command: Command) -> None:
        code = command.end()
        if code != 0:
            raise Lost(f"ends with {code}: {command.said.strip()[-300:]}")

    def is_refused(self, command: Command) -> None:
        code, said = command.end(), command.said
        if code != 2 or "Traceback" in said:
            raise NotSurvived(f"ends with {code}: {said.strip()[-300:]}")

    @contextmanager
    def fault(self, name: str, times: int = 1) -> Iterator[None]:
        """Counts a fault, or several that a run lived through; what goes wrong in the block is told in the table."""
        count = self.counts.setdefault(name, Count())
        count.tried += times
        try:
            yield
        except Lost as error:
            count.lost += 1
            count.remarks.append(str(error))
        except NotSurvived as error:
            count.remarks.append(str(error))
        else:
            count.survived += times

    # ---------------------------------------------------------------------------------------------- what is compared

    def reference(self) -> Path:
        """The run that nothing befell."""
        self.succeeds(self.prepare(self.store))
        self.whole = self.folder / "whole"
        self.succeeds(self.train(self.whole))
        self.weights = load_file(self.whole / "model" / "model.safetensors")
        self.losses = losses(self.whole)
        self.steps = int(self.facts(self.whole)["steps"])
        start = time.monotonic()
        self.succeeds(self.train(self.folder / "again"))
        self.seconds = time.monotonic() - start
        self.compare(self.folder / "again")
        return self.whole

    def facts(self, out: Path) -> dict[str, Any]:
        """Record of a finished run."""
        return json.loads((out / "model" / "training.json").read_text())

    def compare(self, out: Path) -> None:
        """Makes sure that a run ended as the uninterrupted one: weights and losses, bit by bit."""
        weights = load_file(out / "model" / "model.safetensors")
        if weights.keys() != self.weights.keys():
            raise Lost("other weights")
        for name, tensor in self.weights.items():
            if not torch.equal(weights[name], tensor):
                raise Lost(f"{name} differs by {(weights[name] - tensor).abs().max():.2g}")
        if (mine := losses(out)) != self.losses:
            differing = sorted(key for key in self.losses.keys() | mine.keys() if self.losses.get(key) != mine.get(key))
            raise Lost(f"losses differ at {differing[:3]}, {len(differing)} of {len(self.losses)}")

    def unharmed(self) -> None:
        if harm := list(self.folder.rglob("harm")):
            raise Lost(f"code of a stranger ran: {harm[0]}")


def losses(out: Path) -> dict[tuple[str, str], str]:
    """Logged values of training and validation, over all parts of a run: (name, step) → value."""
    found = {}
    for path in sorted((out / "logs").glob("version_*/metrics.csv"), key=lambda path: int(path.parent.name[8:])):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if value and name.startswith(("train/", "val/")) and name != "train/examples_per_second":
                        found[name, row["step"]] = value
    return found


def flip_byte(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
