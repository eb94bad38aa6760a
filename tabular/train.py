"""Train a flow on a store of rows: ``arflows tabular train --config recipe.yaml``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser

from arflows.core.commands.train import run_experiment
from arflows.core.flows import VectorFlow
from arflows.core.runtime.errors import UserError
from arflows.core.runtime.jsonargparse_compat import parse_unchecked
from arflows.core.training.experiment import Experiment
from arflows.core.training.module import FlowTraining
from arflows.core.training.start import Start
from arflows.data.store import Store
from arflows.tabular.datamodule import TableDataModule
from arflows.tabular.representation import TableSpec


class TableFlowTraining(FlowTraining):
    """Trains a flow over vectors, in nats; see `FlowTraining`.

    Args:
        flow: The flow, such as arflows.core.flows.MAF or arflows.core.flows.NSF, and its arguments.
        **options: Options of `FlowTraining`.
    """

    def __init__(self, flow: VectorFlow, **options: Any) -> None:
        super().__init__(flow, unit="nats", **options)


class TableExperiment(Experiment):
    """Trains a flow on a store of rows."""

    model: TableFlowTraining
    datamodule: TableDataModule

    def __init__(self, words: Sequence[str]) -> None:
        super().__init__(TableFlowTraining, TableDataModule, words, "tabular")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the words; a flow that is given without features takes features and context from the store."""
        given = parse_unchecked(parser, args)
        arguments = getattr(given.model.get("flow"), "init_args", {})
        if given.data.store is not None and "features" in arguments and arguments["features"] is None:
            self.require_store(Path(given.data.store))
            spec = TableSpec.from_dict(Store(given.data.store, expect_domain="tabular").spec)
            widths = {"features": spec.features, "context": arguments["context"] or spec.context}
            args = [*args, *(f"--model.flow.init_args.{name}={width}" for name, width in widths.items())]
        super().parse_arguments(parser, args)

    def check(self) -> None:
        """Makes sure that the flow fits the columns; a flow without context ignores that of the store.

        Raises:
            UserError: If it is not.
        """
        flow, data = self.model.flow, self.datamodule
        assert isinstance(flow, VectorFlow)
        data.conditional = flow.context_features > 0
        wanted = TableSpec(data.spec.features, data.spec.context if data.conditional else 0)
        if differences := TableSpec(flow.dims, flow.context_features).differences(wanted):
            raise UserError(
                f"{data.store.path} does not fit the model, model ≠ store: {', '.join(differences)}; "
                f"{self.remedy('features and context of model.flow.init_args')}."
            )
        if self.start is not None:
            _check_columns(self.start, data)
        data.train_dataloader()  # refuses a store that has too few rows for a batch

    def data_facts(self) -> dict[str, Any]:
        """Facts about the training data: the store, the limit of examples, the columns' names and offsets."""
        store = self.datamodule.store
        columns: dict[str, Any] = {
            name: store.provenance[name] for name in ("columns", "offsets") if name in store.provenance
        }
        return {**store.facts(), **columns, "limit": self.datamodule.limit}


def _check_columns(start: Start, data: TableDataModule) -> None:
    """Make sure that columns are those that the model knows, in their order.

    Raises:
        UserError: If they are not.
    """
    own = data.store.provenance["columns"]
    shifts = data.store.provenance.get("offsets", {})
    for kind in ("x", "context") if data.conditional else ("x",):
        known = start.data.get("columns", {}).get(kind)
        if known is not None and known != own[kind]:
            raise UserError(
                f"{data.store.path} has the columns {', '.join(own[kind])}, {start.name} knows {', '.join(known)}: "
                "prepare a store with these columns in this order."
            )
        width = len(own[kind])
        known_shifts = start.data.get("offsets", {}).get(kind, [0.0] * width)
        if list(shifts.get(kind, [0.0] * width)) != list(known_shifts):
            raise UserError(
                f"{data.store.path} holds its columns minus {shifts.get(kind, [0.0] * width)}, {start.name} knows them "
                f"minus {known_shifts}: prepare the rows from the table that {start.name} was trained on."
            )


def train(*words: str) -> None:
    """Train a flow on a store of rows by maximum likelihood.

    Args:
        *words: The words of the command line, such as ``"--config", "recipe.yaml", "--out", "run"``;
            `arflows tabular train --help` lists the options.

    Raises:
        UserError: If the options do not fit together, or training cannot go on.
    """
    run_experiment(TableExperiment, words)
