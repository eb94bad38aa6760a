"""Faults of a run: kills, interrupts, damaged states, NaN losses, a full disk."""

import itertools
import math
import os
import select
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_post_hook

from arflows.core.training.module import FlowTraining
from tests.faults.commands import LIMIT, Command, Lost, NotSurvived, limited, wait_for
from tests.faults.hostile import pickle_file
from tests.faults.trial import Trial, flip_byte

MOST_KILLS = 10
"""Of one run."""


class FaultsOfRuns(Trial):
    """A run goes on from what is left, and ends as the one that nothing befell."""

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

    def fill_disk_of_run(self) -> None:
        """The disk is full while a run saves."""
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
