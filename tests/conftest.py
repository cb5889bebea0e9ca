"""How property-based tests draw: `--hypothesis-profile long` searches on, anew every time."""

from hypothesis import HealthCheck, settings

# a slow machine is no finding; what is written to disk would make two runs differ
_EVERYWHERE = {"deadline": None, "database": None, "suppress_health_check": [HealthCheck.too_slow]}

settings.register_profile("ci", derandomize=True, max_examples=50, **_EVERYWHERE)
settings.register_profile("long", max_examples=2000, print_blob=True, **_EVERYWHERE)
settings.load_profile("ci")  # hypothesis' own option comes later and wins
