"""Imports point down: a part of the library knows only the layers below its own."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

LAYERS = [
    {"errors"},
    {"typing", "lockstep", "files", "progress", "signals"},
    {"tree", "sharding", "sequences"},
    {"losses", "adapters"},
    {"metrics", "transforms", "curvature", "memory", "averages", "data", "models"},
    {"regularizers", "landscape", "plasticity", "parts"},
    {"method"},
    {"learners", "interleave"},
    {"methods"},
    {"training", "interop", "report"},
    {"runs"},
    {"finetune"},
    {"cli"},
    {"__main__"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def sources(folder):
    return sorted((ROOT / folder).rglob("*.py"))


def name_of(path):
    return str(path.relative_to(ROOT))


def imported_modules(path, package):
    """Yield `(line, dotted parts)` of what a file of `package` imports, all absolute.

    `from a.b import c` gives a.b.c, where c may be a module or a name in one.
    """
    inside = (package.name, *path.relative_to(package).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, tuple(alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            base = inside[: len(inside) - node.level + 1] if node.level else ()
            module = tuple(node.module.split(".")) if node.module else ()
            for alias in node.names:
                yield node.lineno, (*base, *module, alias.name)


def upward_imports(path, package, rank):
    """List imports of `path` that leave its part of `package` without going down."""
    part = path.relative_to(package).with_suffix("").parts[0]
    if part == "__init__":  # the front door shows everything
        return []
    if part not in rank:
        return [f"{part} has no layer: give it one in {Path(__file__).name}"]
    faults = []
    for line, (root, *rest) in imported_modules(path, package):
        if root != package.name:
            continue
        name = rest[0] if rest else "__init__"
        if name != part and not rank.get(name, len(rank)) < rank[part]:
            faults.append(f"line {line}: {part} imports {name}")
    return faults


def private_names(path, package):
    """List underscored names that `path` takes from another part of the library."""
    part = path.relative_to(package).with_suffix("").parts[0]
    return [
        f"line {line}: {'.'.join(parts)}"
        for line, parts in imported_modules(path, package)
        if parts[0] == "jaxcl"
        and (package.name != "jaxcl" or parts[1:2] != (part,))
        and any(name.startswith("_") and name != "__version__" for name in parts)
    ]


@pytest.mark.parametrize("path", sources("jaxcl"), ids=name_of)
def test_library_imports_point_down(path):
    """Oracle: the syntax tree of each file against the table of layers."""
    assert upward_imports(path, ROOT / "jaxcl", RANK) == []


@pytest.mark.parametrize("path", sources("jaxcl"), ids=name_of)
def test_library_never_imports_what_stands_on_it(path):
    """Oracle: the syntax tree."""
    roots = {parts[0] for _, parts in imported_modules(path, ROOT / "jaxcl")}
    assert roots.isdisjoint({"experiments", "tests", "third_party"})


@pytest.mark.parametrize("path", sources("experiments"), ids=name_of)
def test_experiments_share_only_the_library(path):
    """Oracle: the syntax tree; an experiment never imports another one.

    The accelerator's benchmark alone does: what it times is the plasticity experiment.
    """
    package = ROOT / "experiments"
    part = path.relative_to(package).with_suffix("").parts[0]
    neighbours = {
        parts[1]
        for _, parts in imported_modules(path, package)
        if parts[0] == "experiments" and len(parts) > 1
    }
    timed = {"plasticity"} if path.parent.name == "accelerator" else set()
    assert neighbours <= {part} | timed


@pytest.mark.parametrize("path", sources("jaxcl") + sources("experiments"), ids=name_of)
def test_nobody_imports_private_names_of_another_part(path):
    """Oracle: the syntax tree; an underscore means that a name may change any day."""
    package = ROOT / path.relative_to(ROOT).parts[0]
    assert private_names(path, package) == []


@pytest.mark.parametrize(
    "statement",
    [
        "from toy.roof import tiles",
        "from toy import roof",
        "import toy.roof",
        "from .roof import tiles",
        "from . import roof",
        "from toy.beside import table",
        "from toy import chimney",  # neither a layer nor a part: the front door
        "def late():\n    import toy.roof",
    ],
)
def test_a_planted_upward_import_is_caught(tmp_path, statement):
    """Oracle: a toy package with a fault put in; without it there is none."""
    package = tmp_path / "toy"
    package.mkdir()
    rank = {"ground": 0, "wall": 1, "beside": 1, "roof": 2}
    wall = package / "wall.py"
    wall.write_text("import math\nfrom toy.ground import door\nfrom .ground import a\n")
    assert upward_imports(wall, package, rank) == []
    wall.write_text(f"import math\n{statement}\n")
    assert len(upward_imports(wall, package, rank)) == 1


def test_modules_of_one_part_may_import_each_other(tmp_path):
    """Oracle: a toy package of two modules in one folder, and one module outside."""
    package = tmp_path / "toy"
    (package / "wall").mkdir(parents=True)
    brick = package / "wall" / "brick.py"
    rank = {"ground": 0, "wall": 1, "roof": 2}
    brick.write_text("from toy.wall.mortar import mix\nfrom .mortar import mix\n")
    assert upward_imports(brick, package, rank) == []
    brick.write_text("from ..roof import tiles\n")
    assert upward_imports(brick, package, rank) == ["line 1: wall imports roof"]
    brick.rename(package / "cellar.py")
    assert "no layer" in upward_imports(package / "cellar.py", package, rank)[0]
