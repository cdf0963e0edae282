"""Random numbers and recomputation, by name."""

from __future__ import annotations

from ..absent import absent, refused

CudaRNGStatesTracker = absent("CudaRNGStatesTracker")
activation_recompute_forward = refused("activation_recompute_forward")
checkpoint = refused("checkpoint")
get_all_rng_states = refused("get_all_rng_states")


def is_fp8_activation_recompute_enabled() -> bool:
    """Never."""
    return False
