"""What an exported Hugging Face folder holds as Python files: they need torch, transformers and diffusers, nothing of
ours.

`common/` has what several models share, `next_clip/`, `next_block/` and `frame_prompt/` the models of these objectives;
an exported folder has them side by side.  `sampling_videogpt`, `sampling_nextblock` and `sampling_frameprompt` are also
the samplers of this package, `solvers_videogpt` and `ddpm_solvers` what makes their steps, and `ddpm` holds the
schedule that models are trained with.
"""
