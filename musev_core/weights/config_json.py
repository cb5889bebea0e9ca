"""The config.json beside a weight file: what leaves no trace in the tensors, as numbers that were checked."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, shown

_LIMIT = 1_000_000  # bytes; published ones have 2,000


@dataclass(frozen=True)
class ConfigJson:
    """The content of a config.json, empty where there is none; `source` is for messages."""

    values: Mapping[str, Any] = field(default_factory=dict)
    source: str = "config.json"

    def whole(self, name: str, default: int, *, most: int) -> int:
        """A whole number from 1 to `most`; `default` where it is missing or null.

        Raises:
            CheckpointError: it is something else.
        """
        value = self.values.get(name)
        if value is None:
            return default
        if type(value) is not int or not 1 <= value <= most:
            raise self._refused(name, value, f"a whole number from 1 to {most}")
        return value

    def heads(self, default: int) -> int:
        """The number of heads of a UNet's attentions, which Stable Diffusion 1.5 files call `attention_head_dim`.

        Raises:
            CheckpointError: it is no number, or not one for all blocks.
        """
        name = "attention_head_dim" if self.values.get("num_attention_heads") is None else "num_attention_heads"
        value = self.values.get(name)
        if isinstance(value, list) and value:
            if any(type(other) is not int or other != value[0] for other in value):
                raise self._refused(name, value, "one number for all blocks, as in Stable Diffusion 1.5")
            value = value[0]
        return ConfigJson({name: value}, self.source).whole(name, default, most=1024)

    def positive(self, name: str, default: float) -> float:
        """A finite number above 0; `default` where it is missing or null.

        Raises:
            CheckpointError: it is something else.
        """
        value = self.values.get(name)
        if value is None:
            return default
        if type(value) not in (int, float) or not 0 < value < 1e6 or not math.isfinite(value):
            raise self._refused(name, value, "a number above 0")
        return float(value)

    def word(self, name: str, default: str, choices: Sequence[str]) -> str:
        """One of `choices`; `default` where it is missing or null.

        Raises:
            CheckpointError: it is something else.
        """
        value = self.values.get(name)
        if value is None:
            return default
        if value not in choices:
            raise self._refused(name, value, f"one of {', '.join(choices)}")
        return value

    def _refused(self, name: str, value: Any, expected: str) -> CheckpointError:
        return CheckpointError(
            f"{self.source}: {name} must be {expected}, but it is {shown(value)}. Take the config.json that was "
            "published with this model."
        )


def read_config(folder: str | PathLike[str]) -> ConfigJson:
    """The config.json of a folder.

    Raises:
        CheckpointError: it is no JSON object.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        return ConfigJson(source=str(path))
    try:
        with path.open("rb") as file:
            text = file.read(_LIMIT + 1)
        if len(text) > _LIMIT:
            raise ValueError(f"it has more than {_LIMIT} bytes")
        values = json.loads(text.decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no readable JSON: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(
            f"{path} must hold names and values in braces, but it holds {shown(values)}. Take the published one."
        )
    return ConfigJson(values, str(path))
