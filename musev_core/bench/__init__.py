"""What the network costs: counted without hardware, and timed on the hardware at hand. Needs torch and einops."""
