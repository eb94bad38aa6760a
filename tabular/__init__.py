"""Density estimation of vectors: the flows of `arflows.core.flows`, from the command line.

>>> from arflows.core.flows import VectorFlow
>>> flow = VectorFlow.from_pretrained("runs/power/model")
"""
