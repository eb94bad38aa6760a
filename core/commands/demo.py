"""``arflows demo``: one small training in every installed domain, and a report."""

import importlib
import importlib.util
import sys
import time
from pathlib import Path

from arflows.core.commands.domains import Domain, all_domains
from arflows.core.commands.exit_codes import BUG, explain
from arflows.core.commands.report import Chapter, Failure, write_report
from arflows.core.runtime.errors import UserError


def demo(out: Path = Path("runs/demo"), seed: int = 0, report: Path = Path("report.html")) -> None:
    """Train, sample and score a small flow of every domain, and write a report.

    Args:
        out: Folder for models and samples, with one folder for each domain.
        seed: Seed of all random numbers.
        report: The HTML file to write.

    Raises:
        UserError: If no domain is installed, or the report cannot be written there.
        SystemExit: With code 1 if a domain failed; the report has the reason and the chapters of the others.
        KeyboardInterrupt: After Ctrl-C, once the report of the chapters so far is written, if there are any.
    """
    began = time.monotonic()
    domains = [domain for domain in all_domains() if _has_demo(domain)]
    if not domains:
        raise UserError(
            "No domain with a demo is installed: install arflows again, by `make install` in its repository."
        )
    if report.is_dir():
        raise UserError(f"{report} is a folder: name a file with --report.")
    report.parent.mkdir(parents=True, exist_ok=True)  # fail before the trainings rather than after them
    chapters, failed = [], []
    interrupted = False
    for number, domain in enumerate(domains, start=1):
        print(f"[{number}/{len(domains)}] {domain.name} — {domain.summary}", flush=True)
        started = time.monotonic()
        try:
            chapters.append(_chapter(domain, out / domain.name, seed))
            print(f"{domain.name} took {_duration(time.monotonic() - started)}", flush=True)
        except KeyboardInterrupt:
            interrupted = True
            break
        except Exception as error:  # the other domains continue
            failed.append(domain.name)
            _, reason = explain(error)
            print(f"error: {domain.name}: {reason}", file=sys.stderr)
            chapters.append(Chapter(domain.name, "This chapter could not be made.", [Failure(reason)]))
    if interrupted and not chapters:
        raise KeyboardInterrupt
    took = _duration(time.monotonic() - began)
    write_report(report, chapters, {**_machine(), "seed": seed, "took": took}, title="arflows demo")
    print(f"{report.resolve()} is the report; the demo took {took}")
    if interrupted:
        raise KeyboardInterrupt
    if failed:
        print(f"error: failed: {', '.join(failed)}", file=sys.stderr)
        raise SystemExit(BUG)


def _has_demo(domain: Domain) -> bool:
    name = f"{domain.module}.demo"
    return name in sys.modules or importlib.util.find_spec(name) is not None


def _chapter(domain: Domain, out: Path, seed: int) -> Chapter:
    return importlib.import_module(f"{domain.module}.demo").chapter(out, seed)


def _machine() -> dict[str, object]:
    import torch  # slow to import, and not needed for the options

    from arflows.core.runtime.machine import hardware, software

    known = software() | hardware(torch.device("cpu"))
    return {name: known[name] for name in ("arflows", "torch", "python", "processor", "threads")}


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
