"""Counts what damaged weight files lead to: `python tests/fuzz_weights.py 5000 [--seed 1]`."""

import argparse
import random
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from support import damage
from support.bounded import bounded
from support.weight_readers import BY_KIND, EVERYTHING


def outcomes(count: int, seed: int, folder: Path) -> Iterator[tuple[Path, str, str]]:
    """(file, reader, "good" | "sentence" | a traceback) of every reader on `count` damaged files."""
    kinds, rng = damage.networks(), random.Random(seed)
    for _ in range(count):
        kind, path = damage.damaged_file(kinds, folder, rng)
        for name, reader in {**EVERYTHING, kind: BY_KIND[kind]}.items():
            try:
                result = bounded(partial(reader, path), size=path.stat().st_size)
                yield path, name, "sentence" if isinstance(result, Exception) else "good"
            except (Exception, AssertionError) as error:
                yield path, name, "".join(traceback.format_exception(error))
        path.unlink()


def main() -> int:
    """Prints the counts, and each traceback once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    counts, kept = Counter(), {}
    with tempfile.TemporaryDirectory() as folder:
        for path, reader, outcome in outcomes(options.count, options.seed, Path(folder)):
            counts["traceback" if outcome not in ("good", "sentence") else outcome] += 1
            if outcome not in ("good", "sentence"):
                kept.setdefault(outcome.splitlines()[-1], f"{reader}, {path.name}\n{outcome}")
    for text in kept.values():
        sys.stdout.write(f"{text}\n")
    sys.stdout.write(
        f"{options.count} files, {sum(counts.values())} readings: {counts['sentence']} sentences, "
        f"{counts['good']} good results, {counts['traceback']} tracebacks\n"
    )
    return int(counts["traceback"] > 0)


if __name__ == "__main__":
    sys.exit(main())
