"""Registration of the audio domain with the command line."""

from arflows.core.commands.domains import Domain

DOMAIN = Domain(
    name="audio",
    summary="speech: autoregressive flows of waveforms, conditioned on mel spectrograms",
    module="arflows.audio",
    verbs={
        "prepare": "turn a folder of recordings, or built-in speech, into a store",
        "train": "train a flow on a store",
        "sample": "synthesise speech from recordings or mel spectrograms, or fill in a gap",
        "stream": "synthesise speech from a stream of mel frames or audio",
        "score": "rank recordings by likelihood, and plot it over time",
        "evaluate": "measure a trained flow on a test split: likelihood, quality, speed",
    },
    examples="utterances",
)
