"""Injects faults into every domain that offers a small run, and counts what is lost: ``python -m tests.faults.run``.

Everything goes through the entry points: ``arflows <domain> prepare`` and ``train``, and `arflows verify`. A fault is
survived if the command ends as a user would want it to (going on as though nothing had happened; or one sentence and
exit code 2, and what was there before still whole). Data are lost where a run cannot be taken up and end in the very
same weights and losses, or where a file that was there before is not what it was.

Each command runs in a process forked from this one, which has imported all that is slow to import.
"""

import argparse
import csv
import importlib
import importlib.util
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import torch
from safetensors.torch import load_file

from arflows.core.cli import main as arflows
from arflows.core.domains import all_domains
from arflows.data.store import Store
from tests.faults.hostile import pickle_file
from tests.faults.small import Small

LIMIT = 120.0
"""Seconds after which a command counts as hanging."""


class Lost(Exception):
    """Data were lost."""


class NotSurvived(Exception):
    """A command did not end as a user would want it to, though nothing was lost."""


@dataclass
class Count:
    tried: int = 0
    survived: int = 0
    lost: int = 0
    remarks: list[str] = field(default_factory=list)


class Command:
    """``arflows …`` in a process of its own, which a fault may befall."""

    def __init__(self, words: list[str], log: Path, before: Callable[[], None] | None = None) -> None:
        self.log = log
        self.process = os.fork()
        if self.process == 0:
            with log.open("w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            # Whatever captures the output of the process that forked: its file must not fill with this one's.
            sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
            code = 1
            try:
                if before is not None:
                    before()
                arflows(words)
                code = 0
            except SystemExit as ending:
                code = ending.code if isinstance(ending.code, int) else 1
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(code)

    def wait(self, seconds: float = LIMIT) -> int | None:
        """The exit code, −n after the signal n, or None if it is not over by then."""
        until = time.monotonic() + seconds
        while True:
            process, status = os.waitpid(self.process, os.WNOHANG)
            if process:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > until:
                return None
            time.sleep(0.002)

    def send(self, number: signal.Signals) -> None:
        os.kill(self.process, number)

    def end(self) -> int:
        """Waits for the end.

        Raises:
            NotSurvived: If it does not come.
        """
        code = self.wait()
        if code is None:
            self.send(signal.SIGKILL)
            self.wait()
            raise NotSurvived("hangs")
        return code

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")


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

    def succeeds(self, command: Command) -> None:
        code = command.end()
        if code != 0:
            raise Lost(f"ends with {code}: {command.said.strip()[-300:]}")

    def is_refused(self, command: Command) -> None:
        code, said = command.end(), command.said
        if code != 2 or "Traceback" in said:
            raise NotSurvived(f"ends with {code}: {said.strip()[-300:]}")

    @contextmanager
    def fault(self, name: str) -> Iterator[Count]:
        """Counts one fault; what goes wrong in the block is told in the table."""
        count = self.counts.setdefault(name, Count())
        count.tried += 1
        try:
            yield count
        except Lost as error:
            count.lost += 1
            count.remarks.append(str(error))
        except NotSurvived as error:
            count.remarks.append(str(error))
        else:
            count.survived += 1

    # ---------------------------------------------------------------------------------------------- what is compared

    def reference(self) -> Path:
        """The run that nothing befell."""
        self.succeeds(self.prepare(self.store))
        self.whole = self.folder / "whole"
        self.succeeds(self.train(self.whole))
        self.weights = load_file(self.whole / "model" / "model.safetensors")
        self.losses = losses(self.whole)
        start = time.monotonic()
        self.succeeds(self.train(self.folder / "again"))
        self.seconds = time.monotonic() - start
        self.compare(self.folder / "again")
        return self.whole

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
        self.fill_disk()
        self.hostile_files()
        self.damage_files()
        self.disturb_prepare()
        return self.counts

    def kill_and_resume(self) -> None:
        """SIGKILL at any moment: start, step, save, validation, export."""
        kills = runs = 0
        while kills < self.cycles:
            runs += 1
            out, killed = self.folder / f"killed{runs}", 0
            while True:
                moment = self.random.uniform(0.2, 1.1) * self.seconds
                command = self.train(out)
                if (code := command.wait(moment)) is not None:
                    break
                command.send(signal.SIGKILL)
                command.wait()
                killed += 1
                if killed > 50:
                    code = self.train(out).end()
                    break
            kills += killed
            name = "SIGKILL at a random moment, resumed"
            with self.fault(name) as count:
                count.tried += max(killed, 1) - 1
                if code != 0 and not (out / "model" / "training.json").is_file():
                    raise Lost(f"ends with {code}: {command.said.strip()[-300:]}")
                if code != 0:  # it was killed after it had ended, and there was nothing left to do
                    self.is_finished(command)
                self.compare(out)
                count.survived += max(killed, 1) - 1
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
        """A run with several states, killed."""
        out = self.folder / name
        command = self.train(out)
        wait_for(out / "checkpoints" / "last-1.ckpt")
        command.send(signal.SIGKILL)
        command.wait()
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

    def fill_disk(self) -> None:
        """The disk is full while a run saves, and while a store is written."""
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
                    command.send(signal.SIGKILL)
                    command.wait()
                    Store(self.store).verify()
                    if self.store.stat().st_size != len(before):
                        raise Lost("the store is cut")


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


def limited(nbytes: int) -> Callable[[], None]:
    """Makes every file of a process end there, as on a disk that is full."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, nbytes))

    return limit


def wait_for(path: Path) -> None:
    until = time.monotonic() + LIMIT
    while not path.exists():
        if time.monotonic() > until:
            raise NotSurvived(f"{path} does not appear")
        time.sleep(0.005)


def domains() -> Iterator[tuple[str, Callable[[Path], Small]]]:
    """Domains that offer a small run."""
    for domain in all_domains():
        if importlib.util.find_spec(f"tests.{domain.name}.faults") is not None:
            yield domain.name, importlib.import_module(f"tests.{domain.name}.faults").small


def run(names: list[str], cycles: int, folder: Path) -> dict[str, dict[str, Count]]:
    """Injects the faults of domains, and prints the table."""
    torch.set_num_threads(1)
    results = {}
    for name, small in domains():
        if names and name not in names:
            continue
        importlib.import_module(f"arflows.{name}.train")  # once, not in every process
        importlib.import_module(f"arflows.{name}.prepare")
        place = folder / name
        place.mkdir(parents=True)
        results[name] = Faults(small(place), place, cycles).inject()
        for fault, count in results[name].items():
            line = f"{name:<10} {fault:<45} {count.tried:>6} {count.survived:>9} {count.lost:>5}"
            print(line + (f"  {count.remarks[0]}" if count.remarks else ""), flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cycles", type=int, default=100, help="kills of a run in each domain")
    parser.add_argument("--domains", nargs="*", default=[], help="all by default")
    parser.add_argument("--out", type=Path, help="a JSON file for the table")
    options = parser.parse_args()
    print(f"{'domain':<10} {'fault':<45} {'tried':>6} {'survived':>9} {'lost':>5}")
    with tempfile.TemporaryDirectory() as folder:
        results = run(options.domains, options.cycles, Path(folder))
    if options.out is not None:
        rows = {name: {fault: vars(count) for fault, count in counts.items()} for name, counts in results.items()}
        options.out.write_text(json.dumps(rows, indent=2) + "\n")
    counts = [count for found in results.values() for count in found.values()]
    tried, survived, lost = (sum(getattr(count, name) for count in counts) for name in ("tried", "survived", "lost"))
    print(f"{tried} faults, {survived} survived, {lost} times data were lost")
    raise SystemExit(lost > 0 or survived < tried)


if __name__ == "__main__":
    main()
