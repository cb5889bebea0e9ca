"""The house: which room may know which, and no room or file that knows itself in the end."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
# A room knows the rooms above it in this list, and none of its own line.
STOREYS = (
    ("errors",),
    ("config", "devices", "file_names", "kernels", "precision", "values"),
    ("locks", "models", "yaml_file"),
    ("denoise", "frames", "weights"),
    ("encode", "measure", "pose"),
    ("pipeline",),
    ("loading",),
    ("bench", "demo", "tasks"),
    ("training",),
    ("cli",),
)


def module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module(path): path for folder in ("musev_core", "nodes") for path in (ROOT / folder).rglob("*.py")}


def imported(name: str) -> Iterator[str]:
    """The modules of the pack that a module imports, anywhere in it, for types too."""
    path = MODULES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield whole if whole in MODULES else base


EDGES = {name: {other for other in imported(name) if other in MODULES and other != name} for name in MODULES}


def circle(edges: dict[str, set[str]]) -> list[str]:
    """The names along a circle, if there is one."""
    done: set[str] = set()

    def search(name: str, way: list[str]) -> list[str]:
        if name in way:
            return way[way.index(name) :]
        if name in done:
            return []
        found = next((found for other in sorted(edges[name]) if (found := search(other, [*way, name]))), [])
        done.add(name)
        return found

    return next((found for name in sorted(edges) if (found := search(name, []))), [])


def test_the_search_finds_circles():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["b", "c"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_no_file_knows_itself_in_the_end():
    # a package's own file says what the package gives, so it knows the files inside; these know only each other
    assert circle(EDGES) == []


def room(name: str) -> str:
    return name.split(".")[1]


def test_every_room_has_a_storey():
    rooms = {room(name) for name in MODULES if name.startswith("musev_core.")}
    assert rooms == {name for storey in STOREYS for name in storey}


def test_a_room_knows_only_those_above_it():
    storeys = {room: number for number, storey in enumerate(STOREYS) for room in storey}
    wrong = [
        f"{name} knows {other}"
        for name, others in EDGES.items()
        for other in others
        if name.startswith("musev_core.") and other.startswith("musev_core.") and room(name) != room(other)
        if storeys[room(other)] >= storeys[room(name)]
    ]
    assert wrong == []


FAMILIES = {name for name in MODULES if name.startswith("nodes.") and name.count(".") == 1} - {
    "nodes.host",
    "nodes.sockets",
}


def test_families_of_nodes_do_not_know_each_other():
    assert len(FAMILIES) > 5
    assert {name: EDGES[name] & FAMILIES for name in FAMILIES if EDGES[name] & FAMILIES} == {}
    assert not any(EDGES[name] & FAMILIES for name in MODULES if name.startswith(("nodes.host", "nodes.sockets")))


def test_the_library_does_not_know_the_nodes_and_they_not_the_trainer():
    for name, others in EDGES.items():
        tops = {other.split(".")[0] for other in others}
        assert name.startswith("nodes") or tops <= {"musev_core"}
        assert not name.startswith("nodes") or not {
            other for other in others if other.startswith("musev_core.training")
        }
