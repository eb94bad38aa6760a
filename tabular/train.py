"""Train a flow on a store of rows: ``arflows tabular train --config recipe.yaml``."""

from collections.abc import Sequence
from typing import Any

from arflows.core.commands.train import train
from arflows.core.flows import VectorFlow
from arflows.core.runtime.errors import UserError
from arflows.core.training.experiment import Experiment
from arflows.core.training.module import FlowTraining
from arflows.tabular.datamodule import TableDataModule
from arflows.tabular.representation import TableSpec


class TableFlowTraining(FlowTraining):
    """Trains a flow over vectors, in nats; see `FlowTraining`.

    Args:
        flow: The flow, such as arflows.core.flows.MAF or arflows.core.flows.NSF, and its arguments.
        **options: Those of `FlowTraining`.
    """

    def __init__(self, flow: VectorFlow, **options: Any) -> None:
        super().__init__(flow, unit="nats", **options)


class TableExperiment(Experiment):
    """Trains a flow on a store of rows."""

    model: TableFlowTraining
    datamodule: TableDataModule

    def __init__(self, words: Sequence[str]) -> None:
        super().__init__(TableFlowTraining, TableDataModule, words, "tabular")

    def check(self) -> None:
        """Makes sure that the flow is one of such rows; one without context leaves that of the store aside.

        Raises:
            UserError: If it is not.
        """
        flow, data = self.model.flow, self.datamodule
        assert isinstance(flow, VectorFlow)
        data.conditional = flow.context_features > 0
        wanted = TableSpec(data.spec.features, data.spec.context if data.conditional else 0)
        if differences := TableSpec(flow.dims, flow.context_features).differences(wanted):
            raise UserError(
                f"{data.store.path} does not fit the model, model ≠ store: {', '.join(differences)}; set features and "
                "context of model.flow.init_args accordingly, or prepare another store."
            )
        data.train_dataloader()  # refuses a store that has too few rows for a batch

    def data_facts(self) -> dict[str, Any]:
        """Return the store the model was trained on, how much of it, and its columns' names and offsets."""
        store = self.datamodule.store
        columns = {name: store.provenance[name] for name in ("columns", "offsets") if name in store.provenance}
        return {**store.facts(), **columns, "limit": self.datamodule.limit}


def main(args: list[str] | None = None) -> None:
    """Run from the command line."""
    train(TableExperiment, args, package="arflows.tabular")


if __name__ == "__main__":
    main()
