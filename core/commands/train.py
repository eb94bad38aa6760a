"""The ``train`` verb of every domain."""

import logging
import re
import warnings
from collections.abc import Callable, Sequence

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from arflows.core.commands.exit_codes import guarded
from arflows.core.commands.recipes import resolve_configs
from arflows.core.runtime.errors import UserError
from arflows.core.training.experiment import Experiment


def train(experiment: Callable[[list[str]], Experiment], args: Sequence[str] | None, package: str) -> None:
    """Runs a domain's ``train`` verb.

    Args:
        experiment: Makes the experiment from the words of the command line.
        args: These words; by default those of the process.
        package: The domain's package, whose recipes ``--config`` may name.

    Raises:
        SystemExit: With code 2 for what the user can mend, 130 after Ctrl-C.
    """
    with guarded(args) as words:
        _quiet_lightning()
        try:
            experiment(resolve_configs(words, package)).fit()
        except MisconfigurationException as error:
            raise UserError(" ".join(str(error).split())) from error


def _quiet_lightning() -> None:
    """Hides Lightning's advertisements, and its remarks on what this module takes care of itself."""
    hidden = re.compile(r"💡|[GTH]PU available|Found current_model_state|An .* was raised with message")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: not hidden.match(record.getMessage())
    )
    for remark in (
        "Checkpoint directory .* exists",
        "The .* does not have many workers",
        ".*treespec, LeafSpec",
        "You're resuming from a checkpoint that ended before the epoch ended",
        "Total length of `list` across ranks is zero",
        "The number of training batches .* is smaller than the logging interval",
        "Grad strides do not match bucket view strides",
    ):
        warnings.filterwarnings("ignore", remark)
