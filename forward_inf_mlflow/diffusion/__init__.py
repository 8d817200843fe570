"""Diffusion models: as an audit takes them, and which training images made a generated one."""
