"""ComfyUI's door to the pack: everything behind it is imported only when ComfyUI asks for the nodes."""

import logging

WEB_DIRECTORY = "./web"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]


async def comfy_entrypoint():
    """The extension, as ComfyUI's V3 API wants it."""
    try:
        from .nodes import MuseVExtension
    except Exception:
        # ComfyUI itself logs one line without the place where it happened
        logging.getLogger(__name__).exception("The MuseV nodes could not be loaded")
        raise
    return MuseVExtension()
