"""Entry of the vision domain on the command line."""

from arflows.core.commands.domains import Domain

DOMAIN = Domain(
    name="vision",
    summary="images: multiscale, autoregressive and transformer flows",
    module="arflows.vision",
    verbs={
        "prepare": "turn a data set, a folder of images or an .npz file into a store",
        "train": "train a flow on a store",
        "sample": "draw images, interpolate or reconstruct with a trained flow",
        "score": "rank images by their likelihood: bits/dim, percentile, typicality",
        "evaluate": "measure a trained flow on a test split: bits/dim, speed, round-trip error",
    },
    examples="images",
)
