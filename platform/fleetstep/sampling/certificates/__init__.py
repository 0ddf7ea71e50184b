"""Measured proof of what the solvers declare, on data whose denoiser is known in closed form."""
