"""For tools that look for this file; all of it is in pyproject.toml."""

from setuptools import setup

setup()
