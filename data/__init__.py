"""Sources of examples, and stores for them; knows no model, and imports only errors and files of `arflows.core`."""
