"""The pack as ComfyUI sees it."""

import asyncio

from support.comfyui import import_pack


def test_the_extension_lists_its_nodes():
    extension = asyncio.run(import_pack().comfy_entrypoint())
    nodes = asyncio.run(extension.get_node_list())
    assert all(node.define_schema().node_id.startswith("MuseV_") for node in nodes)
