"""The nodes artists see, gathered family by family."""

from comfy_api.latest import ComfyExtension, io

from . import conditioning, loaders, motion, pose, reference, sampling, video

FAMILIES = (loaders, conditioning, motion, reference, pose, sampling, video)


class MuseVExtension(ComfyExtension):
    """All nodes of the pack."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Every node class, in the order of the families."""
        return [node for family in FAMILIES for node in family.NODES]
