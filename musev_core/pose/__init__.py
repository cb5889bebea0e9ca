"""Poses and control maps: keypoints, drawing, alignment to a reference, preprocessors by name."""
