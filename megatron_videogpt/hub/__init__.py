"""What an exported Hugging Face folder holds as Python files, copied there word for word: they need torch, transformers and diffusers, nothing of ours.

`sampling_videogpt` is also the sampler of this package: there is one.
"""
