"""The networks: one network or building block per file."""
