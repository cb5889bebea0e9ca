"""Tasks: what the command line is asked for, from YAML to requests for the pipeline (extra.md 2.7)."""
