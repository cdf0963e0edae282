"""What an exported Hugging Face folder holds as Python files: they need torch, transformers and diffusers, nothing of
ours.

`common/` has what several models share, `next_clip/` the model of next clip diffusion; an exported folder has them side
by side.  `sampling_videogpt` is also the sampler of this package: there is one.
"""
