"""The command line: ``arflows <domain> <verb> [options]``, and how every command speaks to its user.

The words are looked up by `main`, which loads nothing but the standard library; only the verb that was asked for is
imported. A verb is a function: `run` makes its command line from its signature and docstring. A verb with a parser of
its own, as training by LightningCLI has, takes the same manners from `guarded` and `ShortErrors`.
"""

from __future__ import annotations

import errno
import importlib
import importlib.metadata
import importlib.resources
import inspect
import io
import os
import re
import select
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from arflows.core.domains import all_domains, find_domain, unknown_name
from arflows.core.errors import UserError
from arflows.core.processes import is_main, together

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace
else:
    ArgumentParser = object  # jsonargparse takes a tenth of a second to import, which a help text must not wait for

Result = TypeVar("Result")

FAULT, MENDABLE = 1, 2
INTERRUPTED, BROKEN_PIPE = 130, 141  # 128 + SIGINT and 128 + SIGPIPE, as shells report a signal

COMMANDS = {
    "demo": "train, sample and score a small flow of every domain; write report.html",
    "reproduce": "repeat a measured result and compare",
    "verify": "compare a store, a model or a run with its checksums",
}
"""What is not a domain; the module ``arflows.core.<command>`` has its ``main``."""


# ------------------------------------------------------------------------------------------------------ the dispatch


def main(args: Sequence[str] | None = None) -> None:
    """Runs ``arflows`` with the words ``args``, by default those of the process.

    Raises:
        SystemExit: with code 2 and one sentence on standard error for what the user can mend.
    """
    with guarded(args) as words:
        match words:
            case []:
                print(_overview(), file=sys.stderr)
                raise SystemExit(MENDABLE)
            case ["-h" | "--help" | "help", *_]:
                print(_overview())
            case ["--version", *_]:
                print(f"arflows {importlib.metadata.version('arflows')}")
            case [command, *rest] if command in COMMANDS:
                importlib.import_module(f"arflows.core.{command}").main(rest)
            case [option, *_] if option.startswith("-"):
                raise _misplaced(option, "a domain", "arflows")
            case [name, *rest]:
                _run_verb(name, rest)


def _run_verb(name: str, words: list[str]) -> None:
    domain = find_domain(name, also=COMMANDS)
    match words:
        case []:
            print(_verbs(name), file=sys.stderr)
            raise SystemExit(MENDABLE)
        case ["-h" | "--help" | "help", *_]:
            print(_verbs(name))
        case [verb, *rest] if verb in domain.verbs:
            importlib.import_module(f"{domain.module}.{verb}").main(rest)
        case [option, *_] if option.startswith("-"):
            raise _misplaced(option, "a verb", f"arflows {name}")
        case [verb, *_]:
            raise unknown_name(f"verb of {name}", verb, domain.verbs)


def _misplaced(option: str, place: str, prog: str) -> UserError:
    return UserError(f"There is no option {option.partition('=')[0]} before {place}; see `{prog} --help`.")


def _overview() -> str:
    return _help_text(
        "arflows <domain> <verb> [options]",
        "Autoregressive normalizing flows: train, generate, score with exact likelihoods.",
        {
            "domains": {domain.name: domain.summary for domain in all_domains()},
            "commands": COMMANDS,
            "options": {"--version": "print the version", "--debug": "show the traceback of an error"},
        },
        "`arflows <domain> --help` lists the verbs of a domain, `arflows <domain> <verb> --help` their options.",
    )


def _verbs(name: str) -> str:
    domain = find_domain(name)
    return _help_text(
        f"arflows {domain.name} <verb> [options]",
        f"{domain.name} — {domain.summary}",
        {"verbs": domain.verbs},
        f"`arflows {domain.name} <verb> --help` lists the options of a verb.",
    )


def _help_text(usage: str, summary: str, groups: Mapping[str, Mapping[str, str]], end: str) -> str:
    lines = [f"usage: {usage}", "", summary]
    for title, entries in groups.items():
        lines += ["", f"{title}:", *(f"  {name:<12} {line}" for name, line in entries.items())]
    return "\n".join([*lines, "", end])


# --------------------------------------------------------------------------------------- one function as one command


def run(function: Callable[..., Result], args: Sequence[str] | None = None, prog: str | None = None) -> Result:
    """Calls ``function`` with the options of a command line that is made from its signature and docstring.

    Every parameter is an option ``--name``; ``--config FILE`` reads options from YAML, ``--print_config`` writes them.
    Errors end the process as `guarded` describes.

    Args:
        function: what to run; its parameters are annotated and described under ``Args:``.
        args: the words of the command line, by default those of the process.
        prog: what the user typed to get here, by default told from the function's module:
            ``arflows vision sample`` for a function of ``arflows.vision.sample``.

    Returns:
        What ``function`` returns.
    """
    with guarded(args) as words, together(), nullcontext() if is_main() else redirect_stdout(io.StringIO()):
        import jsonargparse

        class Parser(ShortErrors, jsonargparse.ArgumentParser):
            pass

        return jsonargparse.auto_cli(
            function,
            args=words,
            as_positional=False,
            parser_class=Parser,
            prog=prog or _program(function),
            description=(inspect.getdoc(function) or "").partition("\n\n")[0],
            config_help="YAML file with options; those on the command line take precedence.",
            epilog="--debug shows the traceback of an error.",
        )


def _program(function: Callable[..., object]) -> str:
    spec = function.__globals__.get("__spec__")  # the module's name even where `python -m` calls it __main__
    return spec.name.replace(".", " ") if spec else Path(sys.argv[0]).name


class ShortErrors(ArgumentParser):
    """Mixed into a parser of jsonargparse, makes it answer a wrong option by one sentence instead of a page of usage.

    >>> class Parser(ShortErrors, LightningArgumentParser): ...
    >>> LightningCLI(Model, Data, parser_class=Parser, args=words)
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False} | kwargs)

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """Parses; a switch may be given without ``true``."""
        for action in self._actions:
            if getattr(action, "_typehint", None) is bool and action.nargs is None:
                action.nargs, action.const = "?", True
        return super().parse_args(*args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises `UserError` where jsonargparse would print its usage and exit."""
        if not self.exit_on_error:  # jsonargparse is trying one of several readings, and catches its own error
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        raise UserError(_option_error(message, parser.prog, list(parser._option_string_actions))) from ex

    def parse_path(self, cfg_path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Namespace:
        """Reads a config file; an error in it is told with the file's name."""
        from arflows.core.configs import check_config

        check_config(Path(str(cfg_path)))
        try:
            return super().parse_path(cfg_path, *args, **kwargs)
        except UserError as error:
            raise UserError(f"{cfg_path}: {error}") from error

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        """Help without Python's notation for classes."""
        return re.sub(r"<class\s+'(?:\w+\.)*(\w+)'>", r"\1", super().format_help(*args, **kwargs))


def _option_error(message: str, prog: str, options: list[str]) -> str:
    """Says in one sentence what jsonargparse says in a paragraph; what is not recognised is only put on one line."""
    more = f"`{prog} --help` lists the options."
    if match := re.match(r"(?:Group '(?P<group>.+)' does not accept option|Option) '(?P<key>.+?)'", message):
        message = f"unrecognized arguments: --{match['group'] + '.' if match['group'] else ''}{match['key']}"
    if match := re.search(r"Importing '([^']*)' is not allowed", message):
        return f"{match[1]} is no class that a config may name: name one of arflows. {more}"
    if match := re.match(r"unrecognized arguments: (\S+)", message):
        name = match[1].partition("=")[0]
        if name.startswith("-"):
            return f"{unknown_name('option', name, options).args[0].partition(' There is: ')[0]} {more}"
        return f"Unexpected {name!r}: options are written as --name value. {more}"
    if match := re.match(r"the following arguments are required: (.+)", message):
        return f"Missing {', '.join('--' + name for name in match[1].split(', '))}. {more}"
    if match := re.fullmatch(r'Parser key "(.+?)":\s*(.+)', message, re.DOTALL):
        option, problem = match.groups()
        value = re.search(r".*(?:Got|Given) value: (.*)\Z", problem, re.DOTALL)
        wanted = re.match(r"Expected an? (.+?)\. Got value", problem) or re.search(r"Subtypes: \[(.+)\]", problem)
        if value and wanted:
            return f"--{option} takes {_plain_type(wanted[1])}, not {value[1]!r}."
        message = f"--{option}: {problem}"
    return " ".join(message.split()).rstrip(".") + f". {more}"


def _plain_type(text: str) -> str:
    """``<class 'int'>, <class 'NoneType'>`` as ``int or null``."""
    text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text).replace("NoneType", "null")
    text = re.sub(r"typing\.Literal\[(.+?)\]", lambda match: match[1].replace(", ", " or "), text)
    return re.sub(r", (?![^\[]*\])", " or ", text)


# ------------------------------------------------------------------------------------------------------- the recipes


def resolve_recipe(name: str | Path, package: str) -> Path:
    """The file of a config that was named by its path, or by its name among the recipes that come with a domain.

    Args:
        name: path of a YAML file, or ``cifar10`` for ``<package>/recipes/cifar10.yaml``. A file goes before a recipe.
        package: the domain's package, such as ``"arflows.vision"``.

    Raises:
        UserError: if there is neither; the message names the recipes that exist.
    """
    if Path(name).is_file():
        return Path(name)
    folder = Path(str(importlib.resources.files(package))) / "recipes"
    recipes = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    if str(name) not in recipes:
        raise unknown_name("file or recipe", str(name), recipes)
    return recipes[str(name)]


def resolve_configs(words: Sequence[str], package: str) -> list[str]:
    """The command line with every ``--config NAME`` (or ``-c NAME``) put through `resolve_recipe`."""
    resolved = list(words)
    for index, word in enumerate(resolved):
        option, equals, value = word.partition("=")
        if option not in ("--config", "-c"):
            continue
        if equals:
            resolved[index] = f"{option}={resolve_recipe(value, package)}"
        elif index + 1 < len(resolved):
            resolved[index + 1] = str(resolve_recipe(resolved[index + 1], package))
    return resolved


# -------------------------------------------------------------------------------------------------------- the errors


_debug: ContextVar[bool | None] = ContextVar("debug", default=None)
"""Whether tracebacks are wanted; None outside of `guarded`."""


@contextmanager
def guarded(args: Sequence[str] | None = None) -> Iterator[list[str]]:
    """Runs a command so that its errors end the process the way a user expects.

    What the user can mend (an exception with ``mendable`` set, an `OSError`, exhausted memory) is one sentence on
    standard error and exit code 2. Ctrl-C is exit code 130, a reader of our output that has gone ends us silently, and
    any other exception is a fault of the program: exit code 1. The option ``--debug``, wherever it stands, or the
    environment variable ``ARFLOWS_DEBUG=1`` adds the traceback.

    Inside another guard this does nothing: errors pass up to the outermost one, so that a command can call another.

    Args:
        args: the words of the command line, by default those of the process.

    Yields:
        The words without ``--debug``.
    """
    args = sys.argv[1:] if args is None else args
    words = [word for word in args if word != "--debug"]
    if _debug.get() is not None:
        yield words
        return
    token = _debug.set(len(words) < len(args) or os.environ.get("ARFLOWS_DEBUG", "0") not in ("", "0"))
    try:
        try:
            yield words
        finally:
            sys.stdout.flush()  # here rather than when Python ends, so that a closed pipe is noticed in time
    except SystemExit as ending:
        if not isinstance(ending.__context__, KeyboardInterrupt):  # Lightning turns Ctrl-C into sys.exit(1)
            raise
        _end(INTERRUPTED, "interrupted")
    except KeyboardInterrupt:
        if _debug.get():
            traceback.print_exc()
        _end(INTERRUPTED, "interrupted")
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains in its own last flush
            raise SystemExit(BROKEN_PIPE) from None
        code, sentence = explain(error)
        _end(code, f"error: {sentence}")
    finally:
        _debug.reset(token)


def explain(error: Exception) -> tuple[int, str]:
    """What to tell the user about an exception; its traceback is printed if the user asked for that.

    Returns:
        The exit code and the sentence: 2 for what the user can mend, 1 for a fault of the program.
    """
    if _debug.get():
        traceback.print_exception(error)
    sentence = _mendable_sentence(error)
    if sentence is not None:
        return MENDABLE, sentence
    advice = "" if _debug.get() else "; --debug shows the traceback"
    return FAULT, f"{type(error).__name__}: {error} (a fault of the program, not of your input{advice})"


def _end(code: int, line: str) -> NoReturn:
    print(line, file=sys.stderr)
    raise SystemExit(code) from None


def _reader_is_gone() -> bool:
    """Whether nobody reads our standard output any more, as in ``arflows --help | head -1``."""
    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), select.POLLOUT)
    except io.UnsupportedOperation:  # a notebook or a test reads it
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _mendable_sentence(error: Exception) -> str | None:
    """What to tell the user; None if the error is not of their making."""
    if getattr(error, "mendable", False):
        return str(error)
    if isinstance(error, OSError) or "No space left on device" in str(error):
        return _os_error_sentence(error)
    # PyTorch's class for a GPU, and its words for a CPU
    if (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    ):
        details = f" ({str(error).splitlines()[0].rstrip('.')})" if str(error) else ""
        return f"The memory does not suffice; choose a smaller batch or model{details}."
    return None


def _os_error_sentence(error: Exception) -> str:
    name = getattr(error, "filename", None)
    file = f"{os.fsdecode(name) if isinstance(name, bytes | os.PathLike) else name}" if name is not None else ""
    code = getattr(error, "errno", None)
    if code in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error):
        return f"No space is left{f' while writing {file}' if file else ''}: free some, or write to another disk."
    if not file:
        return str(error) or type(error).__name__
    match code:
        case errno.ENOENT:
            return f"{file} does not exist: check the path."
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return f"{file} may not be read or written by you: change its permissions or choose another path."
        case errno.EISDIR:
            return f"{file} is a folder: name a file."
        case errno.ENOTDIR:
            return f"{file} is not in a folder, or is not one itself: check the path."
        case errno.EEXIST:
            return f"{file} exists already: remove it or choose another path."
    return f"{file}: {getattr(error, 'strerror', None) or error}."
