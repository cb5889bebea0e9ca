"""How the core lives inside ComfyUI; no node classes in here."""
