"""The faults themselves, and what is lost by them."""

import csv
import itertools
import json
import math
import os
import random
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import torch
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_post_hook

from arflows.core.training import FlowTraining
from arflows.data.store import Store
from tests.faults.commands import LIMIT, Command, Lost, NotSurvived, limited, wait_for
from tests.faults.hostile import pickle_file
from tests.faults.small import Small

MOST_KILLS = 10
"""Of one run."""


@dataclass
class Count:
    tried: int = 0
    survived: int = 0
    lost: int = 0
    remarks: list[str] = field(default_factory=list)


class Faults:
    """The faults of one domain.

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
        return self.command(self.small.domain, "prepare", *self.small.prepare, "--out", out, **options)

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
        """What is known of a finished run."""
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

    # ---------------------------------------------------------------------------------------------- the faults

    def inject(self) -> dict[str, Count]:
        """Injects all of them."""
        self.reference()
        self.kill_and_resume()
        self.stop_and_resume()
        self.damage_states()
        self.spoil_steps()
        self.fill_disk()
        self.hostile_files()
        self.hostile_models()
        self.damage_files()
        self.disturb_prepare()
        return self.counts

    def kill_and_resume(self) -> None:
        """SIGKILL after a random step, and at any moment: start, step, save, validation, export."""
        self.kill_until("SIGKILL at a random step, resumed", self.cycles, self.at_step)
        self.kill_until("SIGKILL at a random moment, resumed", -(-self.cycles // 4), self.at_moment)

    def at_step(self, out: Path) -> Command:
        """Trains, and kills within some milliseconds after a random one of the steps that may be left."""
        steps = Steps(self.random.randrange(1, self.steps // 2))
        command = self.train(out, before=steps.count)
        if steps.come():
            command.wait(self.random.uniform(0, 0.05))
            command.kill()
        return command

    def at_moment(self, out: Path) -> Command:
        """Trains, and kills if it is not over by then."""
        command = self.train(out)
        if command.wait(self.random.uniform(0.2, 1.1) * self.seconds) is None:
            command.kill()
        return command

    def kill_until(self, name: str, kills: int, kill: Callable[[Path], Command]) -> None:
        """Takes runs up again until they are finished, and begins new ones until that many kills are done."""
        done = 0
        while done < kills:
            out, killed = self.folder / "killed", 0
            while (code := (command := kill(out)).end()) == -signal.SIGKILL:
                killed += 1
                if killed == min(MOST_KILLS, kills - done):
                    code = (command := self.train(out)).end()
                    break
            with self.fault(name, killed):
                if code != 0 and not (out / "model" / "training.json").is_file():
                    raise Lost(f"ends with {code}: {command.said.strip()[-300:]}")
                if code != 0:  # it was killed after it had ended, and there was nothing left to do
                    self.is_finished(command)
                self.compare(out)
            done += killed
            shutil.rmtree(out, ignore_errors=True)

    def is_finished(self, command: Command) -> None:
        if "finished after" not in command.said:
            raise Lost(command.said.strip()[-300:])

    def stop_and_resume(self) -> None:
        """SIGTERM and Ctrl-C: the state is saved first."""
        for number, expected in ((signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGINT, 130)):
            with self.fault(f"{number.name}, resumed"):
                out = self.folder / number.name
                command = self.train(out)
                wait_for(out / "checkpoints" / "last.ckpt")
                command.send(number)
                code = command.end()
                if code == 0:
                    raise NotSurvived("was over before the signal")
                if code != expected:
                    raise NotSurvived(f"ends with {code}: {command.said.strip()[-300:]}")
                self.succeeds(self.train(out))
                self.compare(out)

    def interrupted(self, name: str) -> Path:
        """A run with several states, killed in a step: while it saves, the last one may lack its name for a moment."""
        out = self.folder / name
        if (code := self.train(out, before=killed_in_step(self.steps // 2)).end()) != -signal.SIGKILL:
            raise NotSurvived(f"ends with {code} before it could be killed")
        return out

    def damage_states(self) -> None:
        """The last state is damaged, in several ways."""

        def flip(path: Path) -> None:
            flip_byte(path, path.stat().st_size // 2)

        damages: dict[str, Callable[[Path], object]] = {
            "last state truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
            "last state empty": lambda path: os.truncate(path, 0),
            "last state with a flipped byte": flip,
            "last state missing": lambda path: path.unlink(),
            "last state a malicious pickle": pickle_file,
        }
        for name, damage in damages.items():
            with self.fault(f"{name}, resumed"):
                out = self.interrupted(name.replace(" ", "_"))
                damage(out / "checkpoints" / "last.ckpt")
                self.succeeds(self.train(out))
                self.compare(out)
                self.unharmed()
        with self.fault("all states malicious pickles"):
            out = self.interrupted("all_pickles")
            for path in (out / "checkpoints").glob("*.ckpt"):
                pickle_file(path)
            self.is_refused(self.train(out))
            self.unharmed()

    def unharmed(self) -> None:
        if harm := list(self.folder.rglob("harm")):
            raise Lost(f"code of a stranger ran: {harm[0]}")

    def spoil_steps(self) -> None:
        """Losses are not finite: of one step, which is skipped, or of all, with which training stops."""
        with self.fault("one loss not finite, skipped"):
            out = self.folder / "spoilt"
            self.succeeds(self.train(out, before=spoiling(self.steps // 2, self.steps // 2 + 1)))
            self.is_sound(out, skipped=1)
        with self.fault("all losses not finite, stopped"):
            out = self.folder / "all_spoilt"
            command = self.train(out, before=spoiling(self.steps // 2, self.steps))
            self.is_refused(command)
            if "steps in a row" not in command.said:
                raise NotSurvived(command.said.strip()[-300:])
            self.succeeds(self.train(out))  # from the state it saved
            self.is_sound(out, skipped=10)

    def is_sound(self, out: Path, skipped: int) -> None:
        if (found := self.facts(out)["skipped_steps"]) != skipped:
            raise Lost(f"{found} steps were skipped, not {skipped}")
        if not all(tensor.isfinite().all() for tensor in load_file(out / "model" / "model.safetensors").values()):
            raise Lost("weights are not finite")

    def fill_disk(self) -> None:
        """The disk is full while a run saves, while a store is written, and while scores are."""
        size = (self.whole / "checkpoints" / "last.ckpt").stat().st_size
        with self.fault("disk full in training, resumed"):
            out = self.interrupted("full")
            before = {path.name: path.read_bytes() for path in (out / "checkpoints").iterdir()}
            self.is_refused(self.train(out, before=limited(size // 2)))
            for path in (out / "checkpoints").iterdir():
                if path.name in before and path.read_bytes() not in before.values():
                    raise Lost(f"{path} was half written")
            self.succeeds(self.train(out))
            self.compare(out)
        with self.fault("disk full in prepare"):
            before = self.store.read_bytes()
            self.is_refused(self.prepare(self.store, before=limited(len(before) // 3)))
            self.unchanged(before)
        with self.fault("disk full in score"):
            out = self.folder / "scores.csv"
            self.succeeds(self.score(self.whole, out))
            scores = out.read_bytes()
            self.is_refused(self.score(self.whole, out, before=limited(len(scores) // 2)))
            if out.read_bytes() != scores:
                raise Lost(f"{out} is not what it was")

    def unchanged(self, before: bytes) -> None:
        if self.store.read_bytes() != before:
            raise Lost(f"{self.store} is not what it was")

    def hostile_files(self) -> None:
        """Files of strangers: nothing in them runs, and nothing is written."""
        for what, words in self.small.hostile.items():
            with self.fault(f"{what} given to prepare"):
                out = self.folder / "hostile.h5"
                self.is_refused(self.command(self.small.domain, "prepare", *words, "--out", out))
                self.unharmed()
                if out.exists():
                    raise Lost(f"{out} was written")
        with self.fault("class path of a stranger in a config"):
            (self.folder / "stranger.py").write_text(f"open({str(self.folder / 'harm')!r}, 'w')\nclass Evil: pass\n")
            config = self.folder / "stranger.yaml"
            config.write_text(self.small.recipe.read_text() + "\n")
            flow = json.dumps({"class_path": "stranger.Evil"})
            path = [str(self.folder)]
            self.is_refused(self.train(self.folder / "x", "--model.flow", flow, before=lambda: sys.path.extend(path)))
            self.unharmed()
        with self.fault("store with an external link"):
            kept, self.store = self.store, self.folder / "linked.h5"
            shutil.copy(kept, self.store)
            with h5py.File(self.store, "r+") as file:
                name = next(iter(file["train"]))
                del file["train"][name]
                file["train"][name] = h5py.ExternalLink(str(kept), f"/train/{name}")
            try:
                self.is_refused(self.train(self.folder / "y"))
            finally:
                self.store = kept

    def hostile_models(self) -> None:
        """Models of strangers: weights that are a pickle, and a class that is none of arflows' own."""
        (self.folder / "stranger.py").write_text(f"open({str(self.folder / 'harm')!r}, 'w')\nclass Evil: pass\n")
        path = [str(self.folder)]
        model = self.folder / "hostile_model"
        for name in ("model.safetensors", "config.json"):
            with self.fault(f"{name} of a stranger given to score"):
                shutil.copytree(self.whole / "model", model, dirs_exist_ok=True)
                if name == "config.json":
                    config = json.loads((model / name).read_text())
                    (model / name).write_text(json.dumps({**config, "class": "stranger.Evil"}))
                else:
                    pickle_file(model / name)
                out = self.folder / "hostile.csv"
                self.is_refused(self.score(model, out, before=lambda: sys.path.extend(path)))
                self.unharmed()
                if out.exists():
                    raise Lost(f"{out} was written")

    def damage_files(self) -> None:
        """Flipped bytes are found and named."""
        store = self.folder / "flipped.h5"
        for split, fields in ((split, Store(self.store).fields(split)) for split in Store(self.store).splits):
            for name, layout in fields.items():
                with self.fault("flipped byte in a store, named"):
                    shutil.copy(self.store, store)
                    flip_byte(store, layout.offset + self.random.randrange(layout.nbytes))
                    self.names(self.command("verify", store), f"{split}/{name}")
        for name in ("config.json", "model.safetensors", "training.json"):
            with self.fault("flipped byte in a model, named"):
                model = self.folder / "flipped_model"
                shutil.copytree(self.whole / "model", model, dirs_exist_ok=True)
                flip_byte(model / name, self.random.randrange((model / name).stat().st_size))
                self.names(self.command("verify", model), name)
        with self.fault("sound files are called sound"):
            if (code := self.command("verify", self.whole).end()) or (code := self.command("verify", self.store).end()):
                raise NotSurvived(f"ends with {code}")

    def names(self, command: Command, what: str) -> None:
        self.is_refused(command)
        if what not in command.said:
            raise Lost(f"{what} is not named: {command.said.strip()}")

    def disturb_prepare(self) -> None:
        """A store is written by two at once, and by one that is killed."""
        with self.fault("two processes prepare one store"):
            commands = [self.prepare(self.store) for _ in range(2)]
            for command in commands:
                self.succeeds(command)
            Store(self.store).verify()
            if left := [path for path in self.folder.iterdir() if path.name.startswith(".")]:
                raise NotSurvived(f"{left} is left behind")
        before, start = self.store.read_bytes(), time.monotonic()
        self.succeeds(self.prepare(self.folder / "timed.h5"))
        duration = time.monotonic() - start
        for part in (0.3, 0.6, 0.9):
            with self.fault("SIGKILL in prepare"):
                command = self.prepare(self.store)
                if command.wait(part * duration) is None:
                    command.kill()
                    Store(self.store).verify()
                    if self.store.stat().st_size != len(before):
                        raise Lost("the store is cut")


class Steps:
    """Counts the optimizer's steps in another process, to know when one is done."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.read, self.write = os.pipe()

    def count(self) -> None:
        """To be called in that process."""
        left = iter(range(self.number, 0, -1))

        def done(*_: object) -> None:
            if next(left, 0) == 1:
                os.write(self.write, b".")

        register_optimizer_step_post_hook(done)

    def come(self) -> bool:
        """Waits for the step; whether it came, or the process ended before."""
        os.close(self.write)
        come = bool(select.select([self.read], [], [], LIMIT)[0]) and bool(os.read(self.read, 1))
        os.close(self.read)
        return come


def killed_in_step(number: int) -> Callable[[], None]:
    """Makes a process kill itself at the end of this optimizer step, counted from 1."""

    def watch() -> None:
        steps = itertools.count(1)

        def done(*_: object) -> None:
            if next(steps) == number:
                os.kill(os.getpid(), signal.SIGKILL)

        register_optimizer_step_post_hook(done)

    return watch


def spoiling(first: int, end: int) -> Callable[[], None]:
    """Makes the losses of these training steps of a process NaN."""

    def spoil() -> None:
        step, numbers = FlowTraining.training_step, itertools.count()

        def spoilt(self: FlowTraining, *batch: Any) -> torch.Tensor:
            return step(self, *batch) * (math.nan if first <= next(numbers) < end else 1)

        FlowTraining.training_step = spoilt

    return spoil


def losses(out: Path) -> dict[tuple[str, str], str]:
    """What a run logged of training and validation, whatever number of parts it was done in: (name, step) → value."""
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
