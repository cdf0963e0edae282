"""Optimizers, by name: the project's is torch's AdamW, and none of these may be asked."""

from __future__ import annotations

import torch

from ..absent import absent, refused

FusedAdam = absent("FusedAdam", torch.optim.Optimizer)
FusedSGD = absent("FusedSGD", torch.optim.Optimizer)
multi_tensor_applier = refused("multi_tensor_applier")
multi_tensor_l2norm = refused("multi_tensor_l2norm")
multi_tensor_scale = refused("multi_tensor_scale")
