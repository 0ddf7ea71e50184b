"""Weights that other software wrote: read without running anything, mapped onto our networks."""
