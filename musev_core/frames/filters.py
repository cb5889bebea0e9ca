"""FFmpeg's filters for frames on their way in and out."""

from typing import Any

EXACT = "bicubic+accurate_rnd+full_chroma_int"  # without these swscale darkens every conversion by one level


def filter_graph(filters: list[tuple[str, str]], **source: Any) -> Any:
    """A chain of FFmpeg filters; `source` describes the frames pushed into it."""
    from av.filter import Graph

    graph = Graph()
    nodes = [graph.add_buffer(**source)]
    nodes += [graph.add(name, arguments) for name, arguments in [*filters, ("buffersink", "")]]
    graph.link_nodes(*nodes).configure()
    return graph
