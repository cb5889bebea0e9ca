"""Shared by the tests: deterministic numbers, small real models, and the replay of golden cases."""
