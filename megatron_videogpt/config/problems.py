"""Problems of a configuration, as they are collected and worded."""

from __future__ import annotations

from .load import show, value_of
from .schema import Config


class Report:
    """Collects problems; rules about options that are already wrong stay silent, so that one mistake gives one line."""

    def __init__(self, config: Config, broken: set[str]) -> None:
        self.config = config
        self.broken = set(broken)
        self.lines: list[str] = []

    def sound(self, *names: str) -> bool:
        """Whether none of these options has a problem of its own."""
        return not self.broken.intersection(names)

    def add(self, name: str, must: str, fix: str) -> None:
        """One problem of one option."""
        self.lines.append(f"{name} = {show(value_of(self.config, name))}: must {must}; {fix}")
