"""What the audio domain offers on the command line."""

from arflows.core.commands.domains import Domain

DOMAIN = Domain(
    name="audio",
    summary="speech: autoregressive flows of waveforms, given mel spectrograms",
    module="arflows.audio",
    verbs={
        "prepare": "turn a folder of recordings, or built-in speech, into a store",
        "train": "train a flow on a store",
        "sample": "synthesise speech from recordings or mel spectrograms, or fill in a gap",
        "stream": "synthesise speech while its mel spectrogram or a recording still arrives",
        "score": "rank recordings by their likelihood, and show it over time",
        "evaluate": "measure a trained flow on a test split: likelihood, quality, speed",
    },
    examples="utterances",
)
