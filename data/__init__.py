"""Where examples come from and how they are stored. It knows no model and imports nothing of `arflows.core`."""
