"""Ladders: models of several sizes and numbers of tokens by rules, planned, launched and watched."""
