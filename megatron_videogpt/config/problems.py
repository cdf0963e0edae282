"""Problems of a configuration, as they are collected and worded."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cached_property
from typing import Any

from .options import Option, options, value_of
from .schema import Config
from .toml import show, to_toml


class Report:
    """Collects problems; rules about options that are already wrong stay silent, so that one mistake gives one line.

    asked: options that a command was given, also where their value is the default.
    """

    def __init__(self, config: Config, broken: set[str], asked: Collection[str] = ()) -> None:
        self.config = config
        self.broken = set(broken)
        self.asked = frozenset(asked)
        self.lines: list[str] = []

    @cached_property
    def known(self) -> dict[str, Option]:
        """Every option by its name."""
        return {option.name: option for option in options(of=self.config)}

    def sound(self, *names: str) -> bool:
        """Whether none of these options has a problem of its own."""
        return not self.broken.intersection(names)

    def left(self, name: str) -> bool:
        """Whether an option is as it is without being said, as far as is known."""
        return name not in self.asked and value_of(self.config, name) == self.known[name].default

    def add(self, name: str, must: str, fix: str) -> None:
        """One problem of one option."""
        self.lines.append(f"{name} = {show(value_of(self.config, name))}: must {must}; {fix}")

    def check_range(self, must: str, holds: Callable[[Any], bool], names: str) -> None:
        """Options (each element, of a list) that must be in a range; one that is not counts as wrong from then on."""
        for name in names.split():
            value = value_of(self.config, name)
            if self.sound(name) and not all(map(holds, value if isinstance(value, tuple) else (value,))):
                self.add(
                    name, f"be {must}", f"use for example {to_toml(self.known[name].default)} ({self.known[name].help})"
                )
                self.broken.add(name)
