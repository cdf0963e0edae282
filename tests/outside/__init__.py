"""Objectives as another distribution would bring them, and a copy of the package without its own."""
