"""Verbs by the words of a command line, in this process or in several, as ``torchrun`` starts them."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

from arflows.core.commands.cli import run

ARFLOWS = Path(sys.executable).with_name("arflows")
"""The installed command."""

SCRIPT = """
import json, sys
from arflows.core.commands.cli import main
from arflows.core.runtime.processes import distributed_session

with distributed_session():
    for words in json.loads(sys.argv[1]):
        main(words)
"""


def command(module):
    """The verb of a module as a function of the words of a command line."""
    return partial(run, getattr(module, module.__name__.rpartition(".")[2]))


def in_processes(folder, count, *verbs):
    """Runs verbs, each (domain, verb, words), in processes that work together; returns the output."""
    script = folder / "verbs.py"
    script.write_text(SCRIPT)
    given = json.dumps([[domain, verb, *map(str, words)] for domain, verb, words in verbs])
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count), str(script), given]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    script.unlink()
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
