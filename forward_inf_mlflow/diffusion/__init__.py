"""Diffusion models: which training images are behind what they generate."""
