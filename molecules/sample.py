"""Draw molecules with a trained flow: ``arflows molecules sample``."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from rdkit import Chem
from rdkit.Chem import rdDepictor
from rdkit.rdBase import BlockLogs
from tqdm import tqdm

from arflows.core.runtime.errors import UserError
from arflows.core.runtime.files import replacing
from arflows.core.runtime.option_types import PositiveFloat, PositiveInt
from arflows.core.runtime.options import renamed
from arflows.core.runtime.pretrained import load_model
from arflows.core.runtime.processes import is_main, wait
from arflows.molecules.chemistry import mol_of, smiles_of
from arflows.molecules.model import GraphFlow
from arflows.molecules.parallel import draw_batches
from arflows.molecules.properties import PROPERTIES, properties_of
from arflows.molecules.records import Generated, Targets
from arflows.molecules.render import save_grid
from arflows.molecules.workers import Workers

FORMS = (".csv", ".smi", ".sdf")
DRAWN = 20


@renamed(n="count", scaffold="fragment")
def sample(
    model: str,
    out: Path,
    count: PositiveInt = 1000,
    masks: bool = True,
    fragment: str | None = None,
    fill_attachments: bool = False,
    property: str | None = None,
    min_atoms: PositiveInt = 1,
    max_atoms: PositiveInt | None = None,
    temperature: PositiveFloat = 1.0,
    seed: int = 0,
    grid: Path | None = None,
    resume: bool = False,
    batch_size: PositiveInt = 512,
    workers: PositiveInt | None = None,
    device: str = "auto",
) -> None:
    """Draw molecules with a trained flow.

    The suffix of the file decides its format. A .csv has columns smiles (canonical), log_prob (nats, of the graph in
    the order in which it was generated, under the model), log_prob_policy (the same under the policy: masks, limits,
    temperature, given the fragment), logP, QED, TPSA, MW, and for a conditional model the targets. A .smi has SMILES
    and log_prob; an .sdf structures with coordinates of a drawing, and all the figures. Molecules that RDKit refuses,
    possible only without masks, are lines without SMILES in a .csv and are left out of other files.

    Molecules are written to OUT.part as they are drawn, which is renamed at the end; --resume continues it.
    The same seed gives the same molecules, in batches of any size, up to rounding.

    Args:
        model: Folder of a model or of a training run, or a model's name on the Hugging Face Hub.
        out: The file to write, which ends in .csv, .smi or .sdf; it must not exist.
        count: Number of molecules.
        masks: Allow only decisions that respect valences; without masks samples follow the model alone.
        fragment: SMILES of a fragment that is kept in every molecule, with * at the atoms that may get more bonds, such
            as '*c1ccncc1'; without any * all of its atoms may.
        fill_attachments: Require that every * of the fragment gets a bond.
        property: Wanted properties for a conditional model: values or ranges, such as 'logP=2..3,QED=0.9'.
        min_atoms: Minimum number of heavy atoms.
        max_atoms: Maximum number of heavy atoms.
        temperature: Divides the logits of all decisions; below 1 for likelier molecules.
        seed: Seed of the latents.
        grid: A picture of the first molecules, .png or .svg.
        resume: Continue an interrupted run of the same model and options.
        batch_size: Molecules computed at a time.
        workers: Processes that work with RDKit; by default one for each core.
        device: Device: cpu, cuda, …; auto uses a GPU if available.
    """
    if out.suffix not in FORMS:
        raise UserError(f"{out} is no form that can be written: give a name that ends in {', '.join(FORMS)}.")
    if grid is not None and grid.suffix not in (".png", ".svg"):
        raise UserError(f"{grid} is no picture that can be drawn: give a name that ends in .png or .svg.")
    if out.exists():
        raise UserError(f"{out} exists already: choose another --out, or remove it.")
    flow = load_model(GraphFlow, model, device)
    options: dict[str, Any] = {
        "masks": masks,
        "fragment": fragment,
        "fill_attachments": fill_attachments,
        "min_atoms": min_atoms,
        "max_atoms": max_atoms,
        "temperature": temperature,
        "seed": seed,
    }
    wanted = read_targets(property)
    part = Part(out, {"model": flow.checksum(), "count": count, "property": property, **options}, resume)
    columns = ["smiles", "log_prob", "log_prob_policy", *PROPERTIES, *(f"wanted_{name}" for name in flow.properties)]
    wait()  # until all processes know the first molecule
    if part.drawn < count:
        with Workers(workers) as pool:
            drawn = draw_batches(
                flow,
                finish,
                count - part.drawn,
                wanted or None,
                out.suffix,
                columns,
                workers=pool,
                first=part.drawn,
                batch_size=batch_size,
                **options,
            )
            with (
                part,
                tqdm(total=count, initial=part.drawn, desc="sampling", unit=" molecules", disable=None) as progress,
            ):
                if out.suffix == ".csv" and not part.bytes:
                    part.write(Finished(",".join(columns) + "\r\n", 0, 0))
                for finished in drawn:
                    part.write(finished)
                    progress.update(finished.drawn)
    part.complete()
    if grid is not None and is_main():
        shown = list(islice(written_smiles(out), DRAWN))
        save_grid(grid, shown)
    how = "with masks" if masks else "without masks"
    print(f"{out}: {part.valid:,} of {count:,} molecules drawn {how} are valid; seed {seed}")


class Finished(NamedTuple):
    """A formatted batch of molecules.

    Attributes:
        text: Lines of the file.
        drawn: Number of molecules drawn.
        valid: Number of them that RDKit sanitises.
    """

    text: str
    drawn: int
    valid: int


def finish(batch: Generated, form: str, columns: list[str]) -> Finished:
    """Sanitise graphs, compute their properties and format them; runs in a worker process.

    Args:
        batch: Drawn molecules with their log-probabilities.
        form: Suffix of the file: .smi, .csv or .sdf.
        columns: Names of the columns, which are the fields of a record in an .sdf file.
    """
    lines = io.StringIO()
    table = csv.writer(lines)
    valid = 0
    with BlockLogs():
        for row, graph in enumerate(batch.graphs):
            smiles, molecule = smiles_of(graph), mol_of(graph)
            figures = [f"{batch.log_prob[row]:.6f}", f"{batch.log_prob_policy[row]:.6f}"]
            wanted = [f"{value:.6g}" for value in batch.targets[row]] if batch.targets else []
            if smiles is None or molecule is None:
                if form == ".csv":
                    table.writerow(["", *figures, *[""] * len(PROPERTIES), *wanted])
                continue
            valid += 1
            if form == ".smi":
                lines.write(f"{smiles} {figures[0]}\n")
                continue
            values = [smiles, *figures, *(f"{value:.6g}" for value in properties_of(molecule)), *wanted]
            if form == ".csv":
                table.writerow(values)
            else:
                lines.write(_sdf_record(Chem.MolFromSmiles(smiles), dict(zip(columns, values, strict=True))))
    return Finished(lines.getvalue(), len(batch.graphs), valid)


def _sdf_record(molecule: Chem.Mol, values: dict[str, str]) -> str:
    rdDepictor.Compute2DCoords(molecule)
    fields = "".join(f">  <{name}>\n{value}\n\n" for name, value in values.items())
    return f"{Chem.MolToMolBlock(molecule)}{fields}$$$$\n"


@dataclass
class Part:
    """An output file in progress, and the record from which it is resumed.

    Of several processes at one task the main one alone writes it.

    Attributes:
        out: Its final name.
        options: Model and options that decide its content.
        resume: Continue the file that is there.
        drawn: Number of molecules drawn for it.
        valid: Number of them that are valid.
        bytes: Its length up to the last recorded batch.
    """

    out: Path
    options: dict[str, Any]
    resume: bool
    drawn: int = 0
    valid: int = 0
    bytes: int = 0
    _file: io.BufferedRandom | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not self.resume:
            if self.progress.exists():
                raise UserError(f"{self.part} was interrupted: go on with it by --resume, or remove it.")
            return
        if not (self.progress.is_file() and self.part.is_file()):
            raise UserError(f"there is nothing to resume, for {self.part} is missing: leave out --resume.")
        try:
            known = json.loads(self.progress.read_text(encoding="utf-8"))
            then, self.drawn, self.valid, self.bytes = (known[name] for name in ("options", "drawn", "valid", "bytes"))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.progress} is damaged ({error}): remove it and {self.part}.") from error
        if "n" in then:  # of earlier versions
            then["count"] = then.pop("n")
        if different := [name for name, value in self.options.items() if then.get(name) != value]:
            name = different[0]
            if name == "model":
                raise UserError(f"{self.part} was begun with another model: give the same, or another --out.")
            raise UserError(
                f"{self.part} was begun with {name}={then.get(name)}, not {self.options[name]}: give the same, or "
                "another --out."
            )
        if self.part.stat().st_size < self.bytes:
            raise UserError(f"{self.part} is shorter than it was: remove it and {self.progress}.")

    @property
    def part(self) -> Path:
        """The file in progress."""
        return self.out.with_name(self.out.name + ".part")

    @property
    def progress(self) -> Path:
        """The file that records its progress."""
        return self.out.with_name(self.out.name + ".part.json")

    def __enter__(self) -> Part:
        if not is_main():
            return self
        self.part.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.part.open("r+b" if self.resume else "w+b")
        self._file.truncate(self.bytes)
        self._file.seek(self.bytes)
        return self

    def write(self, finished: Finished) -> None:
        """Append molecules and record the progress."""
        content = finished.text.encode()
        self.bytes += len(content)
        self.drawn += finished.drawn
        self.valid += finished.valid
        if self._file is None:
            return
        self._file.write(content)
        self._file.flush()
        state = {"options": self.options, "drawn": self.drawn, "valid": self.valid, "bytes": self.bytes}
        with replacing(self.progress) as temporary:
            temporary.write_text(json.dumps(state) + "\n", encoding="utf-8")

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def complete(self) -> None:
        """Give the file its final name."""
        if not is_main():
            return
        os.replace(self.part, self.out)
        self.progress.unlink()


def read_targets(words: str | None) -> Targets:
    """Read wanted properties.

    >>> read_targets("logP=2..3,QED=0.9")
    {'logP': (2.0, 3.0), 'QED': 0.9}

    Raises:
        UserError: They are written otherwise.
    """
    number = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
    found: dict[str, float | tuple[float, float]] = {}
    for word in (words or "").split(",") if words else []:
        match = re.fullmatch(rf"\s*([^=]+?)\s*=\s*({number})(?:\.\.({number}))?\s*", word)
        if match is None:
            raise UserError(f"property {word.strip()!r} is neither NAME=VALUE nor NAME=LOW..HIGH, such as logP=2..3.")
        name, low, high = match.groups()
        if name in found:
            raise UserError(f"property {name} is asked for twice: give it once.")
        found[name] = float(low) if high is None else (float(low), float(high))
    return found


def written_smiles(path: Path) -> Iterator[str]:
    """Yields the SMILES of a file that `sample` wrote."""
    if path.suffix == ".sdf":
        with path.open("rb") as file:
            yield from (molecule.GetProp("smiles") for molecule in Chem.ForwardSDMolSupplier(file))
        return
    with path.open(newline="", encoding="utf-8") as lines:
        if path.suffix == ".csv":
            yield from (row["smiles"] for row in csv.DictReader(lines) if row["smiles"])
        else:
            yield from (line.split()[0] for line in lines)
