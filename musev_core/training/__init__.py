"""Training MuseV's networks, and the toy world in which the demo model was trained."""
