"""Faults of files: malicious and damaged ones, full disks, concurrent and unfinished writes of stores."""

import json
import shutil
import sys
import time

import h5py

from arflows.data.store import Store
from tests.faults.commands import Command, Lost, NotSurvived, limited
from tests.faults.hostile import pickle_file
from tests.faults.trial import Trial, flip_byte


class FaultsOfFiles(Trial):
    """Existing files stay unchanged, foreign code never runs, and damage is named."""

    def fill_disk(self) -> None:
        """The disk is full while a store is written, and while scores are."""
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
