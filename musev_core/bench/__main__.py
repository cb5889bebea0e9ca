"""`python -m musev_core.bench`: the command `musev bench` where the package is not installed."""

import argparse
import sys

from ..errors import MuseVError
from .command import DESCRIPTION, add_arguments, bench


def main() -> int:
    """The exit status is 0, or 1 after an error a user can mend."""
    parser = argparse.ArgumentParser("python -m musev_core.bench", description=DESCRIPTION)
    add_arguments(parser)
    try:
        return bench(parser.parse_args())
    except MuseVError as error:
        sys.stderr.write(f"musev bench: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
