"""Entry of the tabular domain on the command line."""

from arflows.core.commands.domains import Domain

DOMAIN = Domain(
    name="tabular",
    summary="rows of numbers: masked autoregressive and neural spline flows",
    module="arflows.tabular",
    verbs={
        "prepare": "turn a table of numbers, or a density of the plane, into a store",
        "train": "train a flow on a store",
        "sample": "draw rows with a trained flow",
        "score": "give each row its log-density and where that lies among the training data",
        "evaluate": "measure a trained flow on a test split: log-likelihood, speed, round-trip error",
    },
    examples="rows",
)
