"""How far the numbers of next clip diffusion may be from those recorded in the format of tests/golden/README.md."""

from __future__ import annotations

LIMITS = {
    "ids": 0.0,
    "positions": 0.0,
    "masks": 0.0,
    "noising": 1e-6,
    "components": 2e-5,
    "forward": 2e-5,
    "intermediates": 2e-5,
    "loss": 1e-5,
    "loss per frame": 1e-5,
    "gradient norms": 1e-4,
    "gradients": 1e-4,
    "sampler": 5e-4,
    "cached sampler": 5e-4,
}
