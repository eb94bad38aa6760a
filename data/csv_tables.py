"""CSV and Parquet files as columns of float64, read by pyarrow.

The delimiter, the decimal sign and the header of a CSV file are inferred from its first lines, unless `CsvFormat`
states them. Numbers that are missing (`MISSING`) become NaN, ISO 8601 dates become days since 1970-01-01.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from arflows.core.runtime.errors import UserError
from arflows.data.archives import open_text

if TYPE_CHECKING:
    import pyarrow

DELIMITERS = "\t;|, "
"""Delimiters that are tried, in this order; a space stands for any run of spaces."""

MISSING = ("", "na", "n/a", "#n/a", "nan", "-nan", "null", "none", "-", "?", ".")
"""Spellings of a missing number, in lower case."""

LOOKED_AT = 200
"""Number of lines from which the format of a CSV file is inferred."""

_INTEGER = re.compile(r"[+-]?\d+")
_MICROSECONDS_PER_DAY = 86_400e6


@dataclass(frozen=True)
class CsvFormat:
    """Format of a CSV file; None for a setting that is inferred.

    Attributes:
        delimiter: Character between two cells; a space stands for any run of spaces.
        decimal: Decimal sign.
        header: True if the first line holds the names of the columns.

    Raises:
        UserError: A delimiter or decimal sign is not one character.
    """

    delimiter: str | None = None
    decimal: Literal[".", ","] | None = None
    header: bool | None = None

    def __post_init__(self) -> None:
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '"\r\n'):
            raise UserError(f"delimiter is {self.delimiter!r}: give one character, such as ';'.")
        if self.decimal is not None and self.decimal == self.delimiter:
            raise UserError(f"delimiter and decimal are both {self.decimal!r}: give two different characters.")


@dataclass(frozen=True)
class FileColumns:
    """Columns of a file.

    Attributes:
        names: Names of the columns; None if the file has none.
        columns: Their values, float64 (rows,); NaN for a missing number and in a column that holds no numbers.
        unusable: Description of the content of each column that holds no numbers, by its index.
        remarks: Sentences about omissions and conversions.
        place: Name of a row, counted from 0, in messages.
    """

    names: list[str] | None
    columns: list[np.ndarray]
    unusable: dict[int, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    place: Callable[[int], str] = "row {}".format


def read_csv(path: Path, layout: CsvFormat) -> FileColumns:
    """Read a CSV file.

    Args:
        path: The file, also as ``.gz``.
        layout: Its format, as far as it is known.

    Raises:
        UserError: The file is empty, its lines differ in their number of cells, or its format is ambiguous.
    """
    import pyarrow.csv

    with open_text(path) as file:
        lines = list(islice(file, LOOKED_AT))
    delimiter = layout.delimiter or find_delimiter(lines)
    head = [cells for _, cells in _records(lines, delimiter)]
    if not head:
        raise UserError(f"{path} has no rows: give at least one row of numbers.")
    if len(head) > 1 and head[0][0].startswith("#"):  # NumPy's mark of a header
        shorter = [head[0][0][1:].strip(), *head[0][1:]]
        head[0] = shorter[1:] if len(shorter) > len(head[1]) and not shorter[0] else shorter
    decimal = layout.decimal or _decimal(head, delimiter)
    named = _has_header(path, head, decimal) if layout.header is None else layout.header
    width = len(head[1]) if named and len(head) > 1 else len(head[0])
    names = head[0] if named else None
    remarks = []
    if names is not None and len(names) == width - 1:  # as R writes row names
        names = ["", *names]
    skipped = next((line for line, _ in _records(lines, delimiter)), 0) if named else 0

    content = _content(path, delimiter)
    strings = pyarrow.string()
    try:
        table = pyarrow.csv.read_csv(
            pyarrow.BufferReader(content),
            pyarrow.csv.ReadOptions(column_names=[str(index) for index in range(width)], skip_rows=skipped),
            pyarrow.csv.ParseOptions(
                delimiter="\t" if delimiter == " " else delimiter, newlines_in_values=True, ignore_empty_lines=True
            ),
            pyarrow.csv.ConvertOptions(
                column_types={str(index): strings for index in range(width)}, strings_can_be_null=False
            ),
        )
    except pyarrow.ArrowException as error:
        raise _broken(path, delimiter, skipped, width, error) from error
    if names is not None and len(names) != width:
        raise UserError(
            f"{path} has {len(names)} names in its first line and {width} cells in the next: make them agree, or say "
            "with --delimiter what separates cells."
        )

    def place(row: int) -> str:
        records = islice(_file_records(path, delimiter), row + named, None)
        return f"line {next(records, (row + 1 + named, []))[0]}"

    columns, unusable = [], {}
    for index, column in enumerate(table.columns):
        values, remark, wrong = _numbers(column, decimal)
        columns.append(values)
        label = names[index] if names is not None else f"x{index}"
        if remark:
            remarks.append(f"{label!r} {remark}")
        if wrong is not None:
            unusable[index] = f"{column[wrong].as_py()!r} in {place(wrong)}"
    return _without_index(FileColumns(names, columns, unusable, remarks, place))


def read_parquet(path: Path) -> FileColumns:
    """Read a Parquet file.

    Raises:
        UserError: The file is damaged.
    """
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} is damaged ({str(error).splitlines()[0].rstrip('.')}): copy it again.") from error
    columns, unusable, remarks = [], {}, []
    for index, (name, column) in enumerate(zip(table.column_names, table.columns, strict=True)):
        kind = column.type
        if pyarrow.types.is_temporal(kind):
            try:
                columns.append(_days(column))
                remarks.append(f"{name!r} holds dates, taken as days since 1970-01-01")
                continue
            except pyarrow.ArrowException:
                pass
        if kind not in (pyarrow.float16(), pyarrow.float32(), pyarrow.float64()) and not (
            pyarrow.types.is_integer(kind) or pyarrow.types.is_decimal(kind) or pyarrow.types.is_boolean(kind)
        ):
            columns.append(np.full(len(column), np.nan))
            unusable[index] = f"values of type {kind}"
            continue
        if pyarrow.types.is_boolean(kind):
            column = column.cast(pyarrow.uint8())
        columns.append(column.cast(pyarrow.float64(), safe=False).fill_null(float("nan")).to_numpy())
    found = FileColumns(
        list(table.column_names), columns, unusable, remarks, lambda row: f"row {row + 1} (counted from 1)"
    )
    return _without_index(found)


def _without_index(found: FileColumns) -> FileColumns:
    """Drop the columns of a data frame's index: unnamed ones at the start, and empty unnamed ones."""
    if found.names is None:
        return found
    kept, remarks = [], list(found.remarks)
    for index, name in enumerate(found.names):
        unnamed = name == "" or re.fullmatch(r"Unnamed: \d+|__index_level_\d+__", name) is not None
        if unnamed and (index == 0 or name.startswith("__index")):
            remarks.append(f"the column {name!r} is an index and was dropped")
        elif unnamed and np.isnan(found.columns[index]).all():
            remarks.append(f"column {index + 1} has neither name nor values and was dropped")
        else:
            kept.append(index)
    if len(kept) == len(found.names):
        return found
    return FileColumns(
        [found.names[index] or f"x{index}" for index in kept],
        [found.columns[index] for index in kept],
        {new: found.unusable[old] for new, old in enumerate(kept) if old in found.unusable},
        remarks,
        found.place,
    )


def _content(path: Path, delimiter: str) -> bytes:
    """Return the file in UTF-8, runs of spaces as tabs if these delimit cells."""
    with open_text(path) as file:
        if delimiter != " ":
            return file.read().encode()
        return "".join("\t".join(line.split()) + "\n" for line in file).encode()


def _records(lines: Sequence[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the line and the stripped cells of each record that is not blank."""
    if delimiter == " ":
        yield from ((number, line.split()) for number, line in enumerate(lines, 1) if line.strip())
        return
    reader = csv.reader(lines, delimiter=delimiter)
    try:
        for cells in reader:
            if len(cells) > 1 or (cells and cells[0].strip()):
                yield reader.line_num, [cell.strip() for cell in cells]
    except csv.Error:
        return  # pyarrow reports the error


def _file_records(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    with open_text(path) as file:
        yield from _records(list(file), delimiter)


def find_delimiter(lines: Sequence[str], delimiters: str = DELIMITERS) -> str:
    """Return the first delimiter that divides all records into the same number of cells, at least two; else a comma.

    Args:
        lines: The first lines of a file, at most `LOOKED_AT`.
        delimiters: Delimiters to try, in this order.
    """
    for delimiter in delimiters:
        widths = [len(cells) for _, cells in _records(lines, delimiter)]
        widths = widths[:-1] if len(lines) == LOOKED_AT and len(widths) > 1 else widths  # the last may be cut
        below = widths[1:] or widths  # names may be one fewer, see `read_csv`
        if below and min(below) > 1 and len(set(below)) == 1 and widths[0] in (below[0], below[0] - 1):
            return delimiter
    return ","


def _decimal(head: Sequence[Sequence[str]], delimiter: str) -> Literal[".", ","]:
    if delimiter == ",":
        return "."
    cells = [cell for row in head for cell in row]
    commas = any(re.fullmatch(r"[+-]?\d*,\d+(?:[eE][+-]?\d+)?", cell) for cell in cells)
    points = any(re.fullmatch(r"[+-]?\d*\.\d+(?:[eE][+-]?\d+)?", cell) for cell in cells)
    return "," if commas and not points else "."


def _is_number(cell: str, decimal: str) -> bool:
    try:
        float(cell.replace(decimal, "."))
    except ValueError:
        return False
    return "_" not in cell


def _has_header(path: Path, head: Sequence[Sequence[str]], decimal: str) -> bool:
    """Return True if the first record names the columns.

    It does if a cell is neither a number nor a missing one. Whole numbers in sequence are names, as pandas gives to
    columns without, if the rows below hold other numbers.
    """
    first, rest = head[0], head[1:]
    if not all(_is_number(cell, decimal) or cell.lower() in MISSING for cell in first):
        below = rest[0] if rest else []
        text = [not _is_number(cell, decimal) and cell.lower() not in MISSING for cell in first]
        same = [not _is_number(cell, decimal) and cell.lower() not in MISSING for cell in below]
        # Numbers, and text in the same columns as below: a row of data. A row without numbers is a header.
        return all(text) or text != same or not any(_is_number(cell, decimal) for cell in first)
    if rest and len(first) > 1 and len(rest[0]) == len(first) and first[0] == "" and first[1:]:
        numbers = first[1:]  # behind an index
    else:
        numbers = first
    if not all(_INTEGER.fullmatch(cell) for cell in numbers) or len(numbers) < 2 or not rest:
        return False
    values = [int(cell) for cell in numbers]
    if values != list(range(values[0], values[0] + len(values))):
        return False
    whole = all(_INTEGER.fullmatch(cell) or cell.lower() in MISSING for row in rest for cell in row)
    if whole and values[0] in (0, 1) and len(values) > 2:
        raise UserError(
            f"{path} begins with the line {', '.join(first[:5])}{', …' if len(first) > 5 else ''}, which may name the "
            "columns or be a row: say --header true or --header false."
        )
    return not whole


def _numbers(column: pyarrow.ChunkedArray, decimal: str) -> tuple[np.ndarray, str | None, int | None]:
    """Convert cells to float64.

    Returns:
        The numbers, a remark on their conversion, and the index of the first cell that is not a number.
    """
    import pyarrow
    import pyarrow.compute as compute

    cells = compute.utf8_trim_whitespace(column)
    missing = compute.is_in(compute.utf8_lower(cells), value_set=pyarrow.array(MISSING))
    cells = compute.if_else(missing, None, cells)
    plain = cells if decimal == "." else compute.replace_substring(cells, ",", ".", max_replacements=1)
    plain = compute.replace_substring_regex(plain, r"^\+", "", max_replacements=1)
    try:
        return plain.cast(pyarrow.float64()).fill_null(float("nan")).to_numpy(), None, None
    except pyarrow.ArrowException:
        pass
    if cells.null_count < len(cells):
        try:
            days = _days(cells)
            return days, "holds dates, taken as days since 1970-01-01", None
        except pyarrow.ArrowException:
            pass
    number = r"^-?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$|^-?(?i:inf|infinity)$"
    wrong = compute.index(compute.match_substring_regex(plain, number), False).as_py()
    return np.full(len(cells), np.nan), None, max(wrong, 0)


def _days(cells: pyarrow.ChunkedArray) -> np.ndarray:
    """Convert dates and times to days since 1970-01-01."""
    import pyarrow

    whole = cells.cast(pyarrow.timestamp("us"), safe=False).cast(pyarrow.int64())
    return whole.cast(pyarrow.float64(), safe=False).fill_null(float("nan")).to_numpy() / _MICROSECONDS_PER_DAY


def _broken(path: Path, delimiter: str, skipped: int, width: int, error: Exception) -> UserError:
    """Return the error for a file that cannot be divided into cells, with the first line at fault."""
    for line, cells in _file_records(path, delimiter):
        if line > skipped and len(cells) != width:
            return UserError(
                f"{path}, line {line}: the number of cells changed from {width} to {len(cells)}; give as many in each "
                "line, or say with --delimiter what separates them."
            )
    reason = str(error).splitlines()[0].rstrip(".")
    return UserError(f"{path} is no table of numbers ({reason}): save it again as CSV.")
