"""Text of molecules from files: SMILES, tables with a column of SMILES, SD files, ``.gz`` of each.

Chemistry is not parsed here: an `Entry` is text. Line ends may be those of Unix or Windows.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

from arflows.core.runtime.errors import UserError, did_you_mean
from arflows.data.archives import open_text
from arflows.data.csv_tables import LOOKED_AT, find_delimiter

READABLE = "a file of SMILES (.smi, .smiles, .txt), a table (.csv, .tsv) or an SD file (.sdf, .sd), also as .gz"

_SMILES, _TABLES, _SD = (
    (".smi", ".smiles", ".ism", ".can", ".txt"),
    (".csv", ".tsv"),
    (".sdf", ".sd", ".mol"),
)
_LIKE_SMILES = re.compile(
    r"(?=.*[A-Za-z*\]])(?:\[[^\[\]]+\]|Br|Cl|[BCNOPSFIbcnops*]|[-=#$:/\\.()~]|%\d\d|\d)+(?:\s.*)?", re.DOTALL
)
_RECORDS_LOOKED_AT = 100
"""Records of an SD file in which a field must occur."""


NAME = "name"
"""Name given to the text after the SMILES in a file without columns, and to the titles of an SD file."""


class Entry(NamedTuple):
    """One molecule of a file.

    Attributes:
        number: Its line, counted from 1; in an SD file its index among the records.
        text: SMILES, or a mol block.
        values: Numbers given with it, in the order in which they were asked for; NaN where there is none.
        given: Everything else in the file about it, by the name of its column or field.
    """

    number: int
    text: str
    values: tuple[float, ...] = ()
    given: Mapping[str, str] = {}


@dataclass(frozen=True)
class MoleculeFile:
    """The molecules of a file, to be read as often as wanted.

    Attributes:
        name: The file, or what else the user called it.
        form: Format of the text of an entry.
        notes: Further facts about the origin.
    """

    name: str
    form: Literal["smiles", "mol block"]
    _open: Callable[[], Iterator[Entry]] = field(repr=False)
    notes: dict[str, Any] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Entry]:
        return self._open()


def read_molecules(path: Path, column: str | None = None, values: Sequence[str] = ()) -> MoleculeFile:
    """Open a file of molecules.

    A file of SMILES has one molecule a line, before the first blank or tab; a first line that says "smiles" is a
    header, and names columns if it does not begin with that word. A table has a line of names, or none if its first
    column is SMILES; its delimiter may be a tab, a semicolon or a comma.

    Args:
        path: The file.
        column: Column of a table that holds SMILES; by default the one whose name contains "smiles".
        values: Columns of a table, or fields of an SD file, with numbers to read.

    Raises:
        UserError: The file is missing, empty, damaged or of another kind, or has no such column.
    """
    if not path.is_file():
        raise UserError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}: give {READABLE}.")
    kind = Path(path.name.removesuffix(".gz")).suffix.lower()
    if column is not None and kind not in _TABLES:
        raise UserError(f"{path} is no table: leave out the column {column!r}.")
    if values and kind in _SMILES:
        raise UserError(f"{path} has no columns: {', '.join(values)} can be read from a table or an SD file only.")
    if kind in _SMILES and (hidden := _hidden_table(path)) is not None:
        layout = _layout(path, hidden, column, values)
        source = MoleculeFile(str(path), "smiles", lambda: _table(path, hidden, layout))
    elif kind in _SMILES:
        source = MoleculeFile(str(path), "smiles", lambda: _smiles(path))
    elif kind in _TABLES:
        delimiter = find_delimiter(_first_lines(path), "\t;,")
        layout = _layout(path, delimiter, column, values)
        source = MoleculeFile(str(path), "smiles", lambda: _table(path, delimiter, layout))
    elif kind in _SD:
        _check_fields(path, values)
        source = MoleculeFile(str(path), "mol block", lambda: _sd(path, values))
    else:
        raise UserError(f"{path} cannot be read as molecules: give {READABLE}.")
    if next(iter(source), None) is None:
        raise UserError(f"{path} holds no molecules: give {READABLE}.")
    return source


def _lines(path: Path) -> Iterator[str]:
    try:
        with open_text(path, newline=None) as file:
            yield from file
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is damaged, or no text ({error}): save or copy it again.") from error


def _first_lines(path: Path) -> list[str]:
    return list(islice(_lines(path), LOOKED_AT))


def _hidden_table(path: Path) -> str | None:
    """Return the delimiter of a file of SMILES that is a table with SMILES in a later column; None if it is none."""
    lines = _first_lines(path)
    words = re.split(r"[\s;,]+", lines[0].strip().lower()) if lines else []
    if not any("smiles" in word for word in words) or "smiles" in words[0]:
        return None
    return find_delimiter(lines, "\t;, ")


def _smiles(path: Path) -> Iterator[Entry]:
    for number, line in enumerate(_lines(path), start=1):
        words = line.split(maxsplit=1)
        if words and not (number == 1 and "smiles" in words[0].lower()):
            yield Entry(number, words[0], given={NAME: words[1].strip()} if len(words) > 1 else {})


class _Layout(NamedTuple):
    """Columns of a table to read; `named` is true if the first line names them."""

    named: bool
    smiles: int
    values: tuple[int, ...]


def _rows(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(_lines(path), delimiter=delimiter)
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                yield reader.line_num, [cell.strip() for cell in row]
    except csv.Error as error:
        raise UserError(f"{path} is no table, see its line {reader.line_num} ({error}): save it again.") from error


def _layout(path: Path, delimiter: str, column: str | None, values: Sequence[str]) -> _Layout:
    names = next(_rows(path, delimiter), (0, []))[1]
    like = [name for name in names if "smiles" in name.lower()]
    if column is None and not like:
        if not names:
            raise UserError(f"{path} holds no molecules: give {READABLE}.")
        if not values and _LIKE_SMILES.fullmatch(names[0]):
            return _Layout(False, 0, ())
        raise UserError(
            f"{path} has no column called smiles: say with --column which of {', '.join(names)} holds SMILES."
        )
    exact = [name for name in like if name.lower() == "smiles"]
    wanted = column or (exact or like or [""])[0]
    for name in (wanted, *values):
        if name not in names:
            raise UserError(
                f"{path} has no column {name!r}.{did_you_mean(name, names)} Its first line has {', '.join(names)}."
            )
    return _Layout(True, names.index(wanted), tuple(names.index(name) for name in values))


def _table(path: Path, delimiter: str, layout: _Layout) -> Iterator[Entry]:
    rows = _rows(path, delimiter)
    names = next(rows)[1] if layout.named else []
    for number, row in rows:
        cells = [*row, *[""] * (max(layout.smiles, *layout.values, 0) + 1 - len(row))]
        given = {name: cell for at, (name, cell) in enumerate(zip(names, cells, strict=False)) if at != layout.smiles}
        smiles, *_ = cells[layout.smiles].split(maxsplit=1) or [""]  # without the extensions of CXSMILES
        yield Entry(number, smiles, tuple(_number(cells[at]) for at in layout.values), given)


def _sd(path: Path, values: Sequence[str]) -> Iterator[Entry]:
    block: list[str] = []
    number = 0
    for line in _lines(path):
        if line.startswith("$$$$"):
            number += 1
            yield _record(number, block, values)
            block = []
        else:
            block.append(line)
    if any(line.strip() for line in block):
        yield _record(number + 1, block, values)


def _check_fields(path: Path, names: Sequence[str]) -> None:
    """Raise `UserError` for a field that none of the first records has."""
    if not names:
        return
    found: dict[str, None] = {}
    ends = 0
    for line in _lines(path):
        if line.startswith(">") and "<" in line:
            found[line[line.index("<") + 1 : line.rindex(">")]] = None
        ends += line.startswith("$$$$")
        if ends == _RECORDS_LOOKED_AT:
            break
    for name in names:
        if name not in found:
            shown = ", ".join(list(found)[:20]) or "none"
            raise UserError(f"{path} has no field {name!r}.{did_you_mean(name, found)} Its fields are: {shown}.")


def _record(number: int, lines: list[str], values: Sequence[str]) -> Entry:
    end = next((at for at, line in enumerate(lines) if line.startswith("M  END")), len(lines) - 1)
    fields = {
        line[line.index("<") + 1 : line.rindex(">")]: following.strip()
        for line, following in zip(lines[end + 1 :], lines[end + 2 :], strict=False)
        if line.startswith(">") and "<" in line
    }
    given = {NAME: title} | fields if lines and (title := lines[0].strip()) else fields
    return Entry(number, "".join(lines[: end + 1]), tuple(_number(fields.get(name, "")) for name in values), given)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def nci() -> MoleculeFile:
    """Return the 5,000 molecules of the NCI's open database that come with RDKit; no file of the user is needed."""
    from rdkit import RDConfig

    path = Path(RDConfig.RDDataDir) / "NCI" / "first_5K.smi"
    source = read_molecules(path)
    return MoleculeFile("nci", source.form, source._open, {"origin": "RDKit Data/NCI/first_5K.smi (NCI Open Database)"})
