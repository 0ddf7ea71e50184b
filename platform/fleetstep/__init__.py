"""Fleetstep: train, tune and evaluate fast diffusion models on a Ray cluster."""

__version__ = "0.1.0"
