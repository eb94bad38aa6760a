"""Training: the module that Lightning trains, its callbacks, checkpoints and runs."""
