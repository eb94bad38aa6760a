"""Files, errors, processes, hardware, saved models and compiled loops; imports nothing else of the core."""
