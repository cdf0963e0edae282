"""From a run's configuration to the settings of the sampler of what denoises."""

from __future__ import annotations

from ..config.schema import SampleConfig
from ..errors import UserError
from ..hub.common.sampling_videogpt import Settings


def sampling(config: SampleConfig, given: bool = True) -> Settings:
    """What the sampler takes of the section `sample`; UserError for what cannot be sampled with.  given: there is a
    history before the first clip.
    """
    settings = Settings(
        clips=config.clips,
        window=config.window,
        steps=config.steps,
        guidance=config.guidance,
        guidance_schedule=config.guidance_schedule,
        history_noise=config.history_noise,
        time_shift=config.time_shift,
    )
    try:
        settings.check(given)
    except ValueError as error:
        # Stand-alone code, which knows no other type.
        raise UserError(str(error)) from error
    return settings
