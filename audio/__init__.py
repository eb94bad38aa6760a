"""The place of the audio domain: autoregressive flows for speech waveforms. There is nothing in it yet."""
