"""What an exported Hugging Face folder holds as Python files: they need torch, transformers and diffusers, nothing of
ours.

`common/` has what several models share, `next_clip/` and `next_block/` the models of these objectives; an exported
folder has them side by side.  `sampling_videogpt` and `sampling_nextblock` are also the samplers of this package.
"""
