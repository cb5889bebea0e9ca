"""What `musev demo` shows: a photograph, and a model small enough to run anywhere.

`photograph.jpg` is NASA's portrait of the astronaut Eileen Collins, in the public domain.
"""

from pathlib import Path

PHOTOGRAPH = Path(__file__).parent / "photograph.jpg"
