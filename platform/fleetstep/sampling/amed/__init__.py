"""AMED: learned intermediate levels and directions (Zhou et al. 2024)."""
