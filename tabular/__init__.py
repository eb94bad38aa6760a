"""Density estimation of vectors: the flows of `arflows.core.flows`, from the command line.

A trained model is loaded by ``VectorFlow.from_pretrained("runs/power/model")``.
"""
