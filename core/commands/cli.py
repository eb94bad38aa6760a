"""The command line: ``arflows <domain> <verb> [options]``.

`main` needs only the standard library and imports only the requested verb. A verb is the function of that name in the
module of that name: ``arflows vision sample`` calls ``arflows.vision.sample.sample``. `run` derives the options from
its signature and docstring. A function of ``*words`` parses the words itself, as training by LightningCLI does.

In several processes: ``torchrun --nproc-per-node 4 --no-python arflows vision sample …``.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.resources
import inspect
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from typing import TYPE_CHECKING, TypeVar

from arflows.core.commands.domains import all_domains, domain_names, find_domain
from arflows.core.commands.exit_codes import USER_ERROR, guarded
from arflows.core.commands.recipes import recipes_of
from arflows.core.runtime.errors import UserError, unknown_name
from arflows.core.runtime.options import ShortErrors, renamed_options
from arflows.core.runtime.processes import distributed_session, is_main

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser
else:
    ArgumentParser = object  # jsonargparse takes 0.1 s to import, which would delay --help

Result = TypeVar("Result")

COMMANDS = {
    "demo": "train, sample and score a small flow of every domain; write report.html",
    "reproduce": "repeat a measured result and compare",
    "verify": "compare a store, a model or a run with its checksums",
}
"""Commands that belong to no domain: each is the function ``arflows.core.commands.<command>.<command>``."""


# ------------------------------------------------------------------------------------------------------ the dispatch


def main(args: Sequence[str] | None = None) -> None:
    """Run ``arflows`` with the words ``args``, by default the words of the process.

    Raises:
        SystemExit: With code 2 and one sentence on standard error for a user error.
    """
    with guarded(args) as words:
        match words:
            case []:
                print(_overview(), file=sys.stderr)
                raise SystemExit(USER_ERROR)
            case ["help", name, *rest] if name in COMMANDS or name in domain_names():
                main([name, *rest, "--help"])
            case ["-h" | "--help" | "help", *_]:
                print(_overview())
            case ["--version", *_]:
                print(f"arflows {importlib.metadata.version('arflows')}")
            case [command, *rest] if command in COMMANDS:
                run(_function("arflows.core.commands", command), rest, f"arflows {command}", positional=True)
            case [option, *_] if option.startswith("-"):
                raise _misplaced(option, "a domain", "arflows")
            case [name, *rest]:
                _run_verb(name, rest)


def _run_verb(name: str, words: list[str]) -> None:
    if words and words[0] in domain_names() and name in find_domain(words[0]).verbs:
        raise UserError(f"The domain comes before the verb: arflows {words[0]} {name}.")
    domain = find_domain(name, also=COMMANDS)
    match words:
        case []:
            print(_verbs(name), file=sys.stderr)
            raise SystemExit(USER_ERROR)
        case ["-h" | "--help" | "help", *_]:
            print(_verbs(name))
        case [verb, *rest] if verb in domain.verbs:
            run(_function(domain.module, verb), rest, f"arflows {name} {verb}")
        case [option, *_] if option.startswith("-"):
            raise _misplaced(option, "a verb", f"arflows {name}")
        case [verb, *_]:
            raise unknown_name(f"verb of {name}", verb, domain.verbs)


def _function(package: str, name: str) -> Callable[..., object]:
    function: Callable[..., object] = getattr(importlib.import_module(f"{package}.{name}"), name)
    return function


def _misplaced(option: str, successor: str, prog: str) -> UserError:
    return UserError(f"There is no option {option.partition('=')[0]} before {successor}; see `{prog} --help`.")


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
        {"verbs": domain.verbs, "recipes for --config": recipes_of(domain.module)},
        f"`arflows {domain.name} <verb> --help` lists the options of a verb.",
    )


def _help_text(usage: str, summary: str, groups: Mapping[str, Mapping[str, str]], end: str) -> str:
    lines = [f"usage: {usage}", "", summary]
    for title, entries in groups.items():
        width = max([12, *map(len, entries)])
        lines += ["", f"{title}:", *(f"  {name:<{width}} {line}" for name, line in entries.items())] if entries else []
    return "\n".join([*lines, "", end])


# --------------------------------------------------------------------------------------- one function as one command


def run(
    function: Callable[..., Result],
    args: Sequence[str] | None = None,
    prog: str | None = None,
    *,
    positional: bool = False,
) -> Result:
    """Call a function with the options of a command line that is made from its signature and docstring.

    Every parameter is an option ``--name``; ``--config FILE`` reads options from YAML, ``--print_config`` writes them.
    A function of ``*words`` is called with the words as they are. Errors end the process as `guarded` describes.

    Args:
        function: The function; its parameters are annotated and described under ``Args:``.
        args: The words of the command line, by default the words of the process.
        prog: The words that the user typed to get here, for messages; by default the function's name.
        positional: Take parameters without a default that are not keyword-only as words without ``--name``.

    Returns:
        The value that ``function`` returns.
    """
    with guarded(args) as words:
        if any(each.kind is each.VAR_POSITIONAL for each in inspect.signature(function).parameters.values()):
            return function(*words)
        with distributed_session(), nullcontext() if is_main() else redirect_stdout(io.StringIO()):
            import jsonargparse

            class Parser(ShortErrors, jsonargparse.ArgumentParser):
                renamed = renamed_options(function)

            return jsonargparse.auto_cli(
                function,
                args=words,
                as_positional=positional,
                parser_class=Parser,
                prog=prog or function.__name__,
                description=(inspect.getdoc(function) or "").partition("\n\n")[0],
                config_help="YAML file with options; those on the command line take precedence.",
                epilog="--debug shows the traceback of an error.",
            )


if __name__ == "__main__":
    main()
