"""Placeholder while the family is written."""

NODES: list = []
