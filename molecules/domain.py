"""The commands of the molecules domain."""

from arflows.core.commands.domains import Domain

DOMAIN = Domain(
    name="molecules",
    summary="molecular graphs: an autoregressive flow, exactly scored, valid by masks, checked by RDKit",
    module="arflows.molecules",
    verbs={
        "prepare": "turn SMILES, a table or an SD file into a store",
        "train": "train a flow on a store",
        "sample": "draw molecules, also from a fragment or with wanted properties",
        "score": "give each molecule its exact log-probability, rank a library",
        "evaluate": "measure a trained flow: likelihood, three validities, MOSES' metrics, FCD",
    },
    examples="molecules",
)
