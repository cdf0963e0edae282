"""Megatron-core trainer for Video-GPT (next clip diffusion) and its siblings."""

__version__ = "0.1.0"
