"""Denoising of videos of any length: windows, noise, guidance, schedulers, and one fused model evaluation."""
