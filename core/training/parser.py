"""Parser of the options of training, and the classes that a config may name."""

from importlib.metadata import entry_points
from typing import Any

import jsonargparse
from lightning.pytorch import callbacks, loggers, profilers, strategies
from lightning.pytorch.cli import LightningArgumentParser

from arflows.core.runtime.errors import UserError
from arflows.core.runtime.jsonargparse_compat import listed_classes
from arflows.core.runtime.options import ShortErrors

ALLOWED_CLASSES = (
    callbacks.DeviceStatsMonitor,
    callbacks.EarlyStopping,
    callbacks.GradientAccumulationScheduler,
    callbacks.LearningRateMonitor,
    callbacks.ModelSummary,
    callbacks.RichModelSummary,
    callbacks.RichProgressBar,
    callbacks.Timer,
    callbacks.TQDMProgressBar,
    loggers.CSVLogger,
    loggers.TensorBoardLogger,
    profilers.AdvancedProfiler,
    profilers.PyTorchProfiler,
    profilers.SimpleProfiler,
    strategies.DDPStrategy,
    strategies.FSDPStrategy,
)
"""Classes of Lightning and torch that a config may name; a config may come from an untrusted source."""


class TrainingParser(ShortErrors, LightningArgumentParser):
    """LightningCLI's parser, with errors of one sentence."""

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        """Help that lists the classes which a config may name, not those that `allow_known_classes` refuses."""
        packages, known = _allowed_names()
        with listed_classes(lambda path: path in known or path.partition(".")[0] in packages):
            return super().format_help(*args, **kwargs)

    def instantiate_classes(self, *args: Any, **kwargs: Any) -> Any:
        """Builds the objects that the options name; sizes that do not fit together raise `UserError`."""
        try:
            return super().instantiate_classes(*args, **kwargs)
        except (ValueError, TypeError, ArithmeticError, LookupError, AttributeError, RuntimeError) as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise UserError(
                f"of these settings nothing can be built ({reason}): check those under model and data; --debug shows "
                "where it failed."
            ) from error


def allow_known_classes() -> None:
    """Makes the parser refuse the path of any other class before its module is imported, which would run it."""
    packages, known = _allowed_names()
    jsonargparse.set_parsing_settings(
        import_path_denylist=["*"],
        import_path_allowlist=[*sorted(packages), *sorted(known)],
        instantiate_subclass_spec_in_any=False,
    )


def _allowed_names() -> tuple[set[str], set[str]]:
    """Names of the packages of which every class may be named, and paths of the other classes."""
    packages = {"arflows", *(domain.module.partition(".")[0] for domain in entry_points(group="arflows.domains"))}
    known = {path for kind in ALLOWED_CLASSES for path in (_public_path(kind), f"{kind.__module__}.{kind.__name__}")}
    return packages, known


def _public_path(kind: type) -> str:
    """Public import path of a class of Lightning."""
    return f"{'.'.join(kind.__module__.split('.')[:3])}.{kind.__name__}"
