"""The flow core: bijections, conditioners, densities, training and the command line. It knows no domain.

Nothing is imported here, so that the command line can answer without loading PyTorch.
"""
