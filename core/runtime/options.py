"""Option errors of one sentence, for every parser of a command."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from arflows.core.runtime.errors import UserError, unknown_name
from arflows.core.runtime.jsonargparse_compat import let_switches_stand_alone, option_names

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace
else:
    ArgumentParser = object  # importing jsonargparse takes a tenth of a second, which `--help` should not


Function = TypeVar("Function", bound=Callable[..., Any])

RANGES = {
    "PositiveInt": "a whole number from 1 up",
    "NonNegativeInt": "a whole number from 0 up",
    "PositiveFloat": "a number above 0",
    "NonNegativeFloat": "a number from 0 up",
    "Fraction": "a number from 0 up to, not including, 1",
}
"""The types of `arflows.core.runtime.option_types` in words."""


def renamed(**names: str) -> Callable[[Function], Function]:
    """Mark a verb whose options had other names; the error for an old name gives the new one.

    >>> @renamed(n="count")
    ... def sample(count: int) -> None: ...

    Args:
        **names: The new name of each old one.
    """

    def mark(function: Function) -> Function:
        function.renamed = names  # type: ignore[attr-defined]
        return function

    return mark


def renamed_options(function: Callable[..., Any]) -> Mapping[str, str]:
    """Return the new names of a verb's renamed options by their old names."""
    names: Mapping[str, str] = getattr(function, "renamed", {})
    return names


class ShortErrors(ArgumentParser):
    """Mixed into a parser of jsonargparse, turns the usage page after a wrong option into one sentence.

    >>> import jsonargparse
    >>> class Parser(ShortErrors, jsonargparse.ArgumentParser):
    ...     pass
    >>> parser = Parser(prog="arflows")
    >>> _ = parser.add_argument("--count", type=int)
    >>> parser.parse_args(["--cuont", "3"])
    Traceback (most recent call last):
    ...
    arflows.core.runtime.errors.UserError: There is no option '--cuont'. Did you mean --count? ...

    Attributes:
        renamed: New names of options by their old names.
    """

    renamed: Mapping[str, str] = {}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False} | kwargs)

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """Parses; a switch may be given without ``true``."""
        let_switches_stand_alone(self)
        return super().parse_args(*args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises `UserError` where jsonargparse would print its usage and exit."""
        if not self.exit_on_error:  # jsonargparse is trying one of several readings, and catches its own error
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        raise UserError(_option_error(message, parser.prog, option_names(parser), self.renamed)) from ex

    def parse_path(self, cfg_path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Namespace:
        """Reads a config file; errors in it name the file."""
        from arflows.core.runtime.configs import check_config

        check_config(Path(str(cfg_path)))
        try:
            return super().parse_path(cfg_path, *args, **kwargs)
        except UserError as error:
            raise UserError(f"{cfg_path}: {error}") from error

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        """Help without Python's notation for classes."""
        return re.sub(r"<class\s+'(?:\w+\.)*(\w+)'>", r"\1", super().format_help(*args, **kwargs))


def _option_error(message: str, prog: str, options: list[str], renamed: Mapping[str, str]) -> str:
    """Shorten an error of jsonargparse to one sentence; unknown errors are only put on one line."""
    more = f"`{prog} --help` lists the options."
    if match := re.match(r"(?:Group '(?P<group>.+)' does not accept option|Option) '(?P<key>.+?)'", message):
        message = f"unrecognized arguments: --{match['group'] + '.' if match['group'] else ''}{match['key']}"
    if match := re.search(r"Importing '([^']*)' is not allowed", message):
        return f"{match[1]} is no class that a config may name: name one of arflows. {more}"
    if match := re.match(r"unrecognized arguments: (\S+)", message):
        name = match[1].partition("=")[0]
        if new := renamed.get(name.lstrip("-")):
            return f"{name} is now --{new}. {more}"
        if name.startswith("-"):
            return f"{unknown_name('option', name, options).args[0].partition(' There is: ')[0]} {more}"
        return f"Unexpected {name!r}: options are written as --name value. {more}"
    if match := re.fullmatch(r"argument (--\S+): expected one argument", message):
        return f"{match[1]} needs a value. {more}"
    if match := re.match(r"the following arguments are required: (.+)", message):
        return f"Missing {', '.join('--' + name for name in match[1].split(', '))}. {more}"
    if match := re.fullmatch(r'Parser key "(.+?)":\s*(.+)', message, re.DOTALL):
        option, problem = match.groups()
        value = re.search(r".*(?:Got|Given) value: (.*)\Z", problem, re.DOTALL)
        wanted = re.match(r"Expected an? (.+?)\. Got value", problem) or re.search(r"Subtypes: \[(.+)\]", problem)
        if value and wanted:
            return f"--{option} takes {_plain_type(wanted[1])}, not {value[1]!r}."
        if ranged := re.fullmatch(
            r"Not of type (\w+): (?:(.*) does not conform to .*|.*: '?(.*?)'?|(.*) not an? .*)", problem
        ):
            kind, *values = ranged.groups()
            shown = next(each for each in values if each is not None)
            return f"--{option} takes {RANGES.get(kind, kind)}, not {shown!r}."
        message = f"--{option}: {problem}"
    return " ".join(message.split()).rstrip(".") + f". {more}"


def _plain_type(text: str) -> str:
    """``<class 'int'>, <class 'NoneType'>`` as ``int or null``."""
    text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text).replace("NoneType", "null")
    text = re.sub(r"\b\w+\b", lambda match: RANGES.get(match[0], match[0]), text)
    text = re.sub(r"typing\.Literal\[(.+?)\]", lambda match: match[1].replace(", ", " or "), text)
    return re.sub(r", (?![^\[]*\])", " or ", text)
