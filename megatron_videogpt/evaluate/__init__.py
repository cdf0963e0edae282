"""Measuring a model on scenes whose truth is known: which bodies are where they ought to be, beside simple guesses."""
