"""A task: everything that one video is made of, checked before anything long starts."""

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ..encode.prompts import negative_prompt
from ..errors import blame
from .checks import check_together
from .fields import FieldInfo, convert, field_infos
from .parameters import Parameters

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Task(Parameters):
    """One video to make: parameter names and defaults of the original (extra.md 2.7 and 2.8).

    Values may be given as text ("1.8", "on", "0,-1"); they are converted to the annotated types, presets of
    negative prompts become their text. The switches which the original turns *off* when given are plain booleans.

    Raises:
        MuseVError: a value is of the wrong kind or out of range, or values contradict each other. Files are
            looked at by `task_results.check_files` only.
    """

    def __post_init__(self) -> None:
        """Convert and check every field, then the fields together."""
        with blame(f"Task {str(self.name)!r}"):
            for f in dataclasses.fields(self):
                object.__setattr__(self, f.name, convert(f.name, getattr(self, f.name), f.metadata["info"], f.default))
            for key in ("negative_prompt", "video_negative_prompt"):
                with blame(key):
                    object.__setattr__(self, key, negative_prompt(getattr(self, key)))
            if self.video_is_middle and self.which2video == "video" and not self.controlnet_name and self.video_path:
                log.info("task %s: the video of control maps is not used, no ControlNet is named for it", self.name)
                object.__setattr__(self, "video_path", None)
                object.__setattr__(self, "video_is_middle", False)
            check_together(self)


FIELDS: Mapping[str, FieldInfo] = MappingProxyType(field_infos(Task))
