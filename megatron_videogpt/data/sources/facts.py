"""What a scene says of itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...config.schema_data import PhysicsConfig


def describe_scene(config: PhysicsConfig, seed_key: int) -> Any:
    raise NotImplementedError


def scene_classes(kinds: Sequence[str], depth: int) -> tuple[str, ...]:
    raise NotImplementedError
