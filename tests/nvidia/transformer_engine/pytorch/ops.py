"""Fusible operations, by name."""

from __future__ import annotations

import torch

from ..absent import absent

FusibleOperation = absent("FusibleOperation", torch.nn.Module)
Sequential = absent("Sequential", torch.nn.Module)
