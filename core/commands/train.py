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
    """Train: the ``train`` verb of a domain is a function of ``*words`` that calls this.

    Args:
        experiment: The domain's experiment, which takes the words of the command line. ``--config`` may name the
            recipes of the package that it is defined in.
        words: The words of the command line.

    Raises:
        UserError: If the options do not fit together, or training cannot go on.
        KeyboardInterrupt: After Ctrl-C, with the last state saved.
    """
    _quiet_lightning()
    try:
        experiment(resolve_configs(words, experiment.__module__.rpartition(".")[0])).fit()  # type: ignore[call-arg,arg-type]
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
