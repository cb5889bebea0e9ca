"""How good a video is: numbers per frame, a report, charts."""
