"""Train a flow on a store of molecules: ``arflows molecules train --config recipe.yaml``."""

from collections.abc import Sequence
from typing import Any

from arflows.core.commands.train import run_experiment
from arflows.core.runtime.errors import UserError
from arflows.core.training.experiment import Experiment
from arflows.core.training.module import FlowTraining
from arflows.data.store import Store
from arflows.molecules.datamodule import MoleculeDataModule
from arflows.molecules.model import GraphFlow, MoleculeFlow


class MoleculeFlowTraining(FlowTraining):
    """Trains a flow over molecules, in nats a molecule; see `FlowTraining`.

    Args:
        flow: The flow, such as arflows.molecules.MoleculeFlow or arflows.molecules.GraphAF, and its arguments.
        **options: Options of `FlowTraining`.
    """

    def __init__(self, flow: GraphFlow, **options: Any) -> None:
        super().__init__(flow, unit="nats", **options)


class MoleculeExperiment(Experiment):
    """Trains a flow on a store of molecules."""

    model: MoleculeFlowTraining
    datamodule: MoleculeDataModule

    def __init__(self, words: Sequence[str]) -> None:
        super().__init__(MoleculeFlowTraining, MoleculeDataModule, words, "molecules")

    def before_instantiate_classes(self) -> None:
        """Take the settings of the data from the store if none are given, so that recipes need not list atom types."""
        store, arguments = self.config.data.store, self.config.model.flow.get("init_args")
        if store.exists() and arguments is not None and arguments.get("spec") is None:
            arguments["spec"] = Store(store, expect_domain="molecules").spec
        super().before_instantiate_classes()

    def check(self) -> None:
        """Check that the flow fits the store, which must have the properties that it is conditional on.

        Raises:
            UserError: It is not, or the store lacks a property.
        """
        flow, data = self.model.flow, self.datamodule
        assert isinstance(flow, GraphFlow)
        if self.start is not None and (reason := flow.spec.lacks(data.spec)):
            raise UserError(f"{data.store.path} does not fit {self.start.name}: {reason}; prepare other molecules.")
        if self.start is None and (differences := flow.spec.differences(data.spec)):
            raise UserError(
                f"{data.store.path} does not fit the model, model ≠ store: {', '.join(differences)}; leave out spec in "
                "model.flow.init_args, or prepare another store."
            )
        data.model_spec = flow.spec
        data.properties = flow.properties
        if isinstance(flow, MoleculeFlow) and flow.context_encoder is not None:
            flow.context_encoder.set_extremes(*data.property_extremes())
        data.train_dataloader()  # refuses a store that has too few molecules for a batch

    def data_facts(self) -> dict[str, Any]:
        """Facts about the store, and the number of molecules used of it."""
        return {**self.datamodule.store.facts(), "limit": self.datamodule.limit}


def train(*words: str) -> None:
    """Train a flow on a store of molecules by maximum likelihood.

    Args:
        *words: The words of the command line, such as ``"--config", "recipe.yaml", "--out", "run"``;
            `arflows molecules train --help` lists the options.

    Raises:
        UserError: If the options do not fit together, or training cannot go on.
    """
    run_experiment(MoleculeExperiment, words)
