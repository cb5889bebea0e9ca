"""MuseV: videos of a person that stays that person, on Stable Diffusion 1.5.

Start with `musev_core.loading.load_pipeline` and `musev_core.pipeline.MuseVPipeline`; `musev_core.cli` is the command
`musev`. Nothing here knows ComfyUI.
"""
