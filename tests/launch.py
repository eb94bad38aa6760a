"""Verbs in several processes, as ``torchrun`` starts them."""

import json
import os
import subprocess
import sys

SCRIPT = """
import importlib, json, sys
from arflows.core.runtime.processes import distributed_session

with distributed_session():
    for module, words in json.loads(sys.argv[1]):
        importlib.import_module(module).main(words)
"""


def in_processes(folder, count, *verbs):
    """Runs (module, words) one after the other in processes that work together; returns what they said."""
    script = folder / "verbs.py"
    script.write_text(SCRIPT)
    given = json.dumps([(module, [str(word) for word in words]) for module, words in verbs])
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count), str(script), given]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    script.unlink()
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
