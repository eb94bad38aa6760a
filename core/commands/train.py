"""The ``train`` verb of every domain."""

import logging
import re
import warnings
from collections.abc import Sequence

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from arflows.core.commands.recipes import resolve_configs
from arflows.core.runtime.errors import UserError
from arflows.core.training.experiment import Experiment


def run_experiment(experiment: type[Experiment], words: Sequence[str]) -> None:
    """Run a training; the ``train`` verb of each domain calls this with its words.

    Args:
        experiment: The domain's experiment class. ``--config`` may name the recipes of its package.
        words: Words of the command line.

    Raises:
        UserError: If options contradict each other, or training fails.
        KeyboardInterrupt: After Ctrl-C, once the last state is saved.
    """
    _quiet_lightning()
    try:
        experiment(resolve_configs(words, experiment.__module__.rpartition(".")[0])).fit()  # type: ignore[call-arg,arg-type]
    except MisconfigurationException as error:
        raise UserError(" ".join(str(error).split())) from error


def _quiet_lightning() -> None:
    """Hide Lightning's advertisements, and warnings about settings that the training handles itself."""
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
