"""A stand-in: MindSpeed wants einops to be importable, and nothing here uses it."""
