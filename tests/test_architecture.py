"""The house rules that a machine can check: who imports whom, and how long things are."""

import ast
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
SOURCE = TESTS.parent / "src" / "specblock"
MODULES = sorted(SOURCE.rglob("*.py"))
MODULE_LINES, FUNCTION_LINES, FOLDER_FILES = 300, 50, 15

# Imports run downwards only: a part may use the parts of its own level and of lower ones. What is
# not listed here may be imported by nothing but the package's own __init__.
LEVELS = {
    "errors": 0,
    "own": 0,
    "steps": 0,
    "config": 1,
    "storage": 1,
    "stored": 1,
    "data": 1,
    "weights": 1,
    "tree": 1,
    "kernels": 1,
    "budget": 2,
    "target": 2,
    "drafters": 3,
    "engine": 4,
    "training": 5,
    "adaptation": 6,
    "bench": 7,
    "doctor": 7,
    "integrations": 7,
    "serving": 7,
    "api": 8,
    "fitting": 8,
    "cli": 9,
    "__init__": 9,
    "__main__": 9,
}
# stricter than the levels
OWN_LEVEL = {
    "config": {"tree"},
    "storage": set(),
    "stored": set(),
    "tree": {"tree"},
    "kernels": {"kernels"},
    "budget": {"budget"},
    "api": set(),
    "target": {"target"},
}
TREE_MAY_IMPORT = {"torch", "__future__"}


def part_of(path):
    """The part of the house that a module belongs to: its first folder, or its own name."""
    relative = path.relative_to(SOURCE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imported(path):
    """(line, dotted name) of everything that a module imports, however deep inside it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            if node.module == "specblock":
                yield from ((node.lineno, f"specblock.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, node.module


def own_parts(path):
    """(line, part) of the imports of our own; names of the package itself are its __init__."""
    for line, name in imported(path):
        pieces = name.split(".")
        if pieces[0] == "specblock":
            part = pieces[1] if len(pieces) > 1 else "__init__"
            yield line, part if part in LEVELS or (SOURCE / part).is_dir() else "__init__"


def typing_only(path):
    """Lines under ``if TYPE_CHECKING:``, which import nothing when the program runs."""
    lines = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            lines.update(range(node.lineno, node.end_lineno + 1))
    return lines


def modules_of(package):
    """The dotted name and the file of every module of a package's folder."""
    for path in sorted(package.rglob("*.py")):
        pieces = path.relative_to(package.parent).with_suffix("").parts
        yield ".".join(pieces[:-1] if pieces[-1] == "__init__" else pieces), path


def import_graph(package):
    """Which modules of a package every one of them imports, at its top or inside a function.

    Not that a module's package comes before it: Python takes care of that.
    """
    modules = dict(modules_of(package))
    graph = {}
    for module, path in modules.items():
        unseen, graph[module] = typing_only(path), set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                inner = [f"{node.module}.{alias.name}" for alias in node.names]
                names = [name if name in modules else node.module for name in inner]
            else:
                continue
            if node.lineno not in unseen:
                graph[module].update(set(names) & set(modules))
    return graph


def circle_in(graph):
    """One circle of a graph as a list of its nodes; an empty list where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def crowded(folder):
    """The folders from here down with more Python files than a reader takes in at a glance.

    A folder's own ``__init__.py`` does not count: it is the folder's name plate.
    """
    files = [path for path in folder.rglob("*.py") if path.name != "__init__.py"]
    counts = Counter(path.parent for path in files)
    return {str(at.relative_to(folder)): n for at, n in counts.items() if n > FOLDER_FILES}


def name_of(path):
    return str(path.relative_to(SOURCE))


def test_there_is_something_to_check():
    assert len(MODULES) > 10


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_run_downwards(path):
    part = part_of(path)
    assert part in LEVELS, f"{part} has no level yet: give it one here"
    wrong, unseen = [], typing_only(path)
    for line, other in own_parts(path):
        if part == "cli" and other == "__init__":
            continue  # the command line is a user of the public names
        same = LEVELS[other] == LEVELS[part]
        allowed = OWN_LEVEL.get(part)
        fits = (other in allowed if allowed is not None else True) if same else (
            LEVELS[other] < LEVELS[part]
        )  # fmt: skip
        if not fits and line not in unseen:
            wrong.append(f"line {line}: {part} imports {other}")
    assert not wrong


def test_no_module_imports_itself_through_others():
    assert circle_in(import_graph(SOURCE)) == []


@pytest.mark.parametrize(
    ("back", "circle"),
    [
        ("from house.a import x", True),
        ("from house import a", True),
        ("import house.a", True),
        ("def f():\n    if True:\n        from house.a import x", True),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house.a import x", False),
        ("from house.inner.c import x", False),
    ],
)
def test_circles_are_found_however_deep_the_import(tmp_path, back, circle):
    package = tmp_path / "house"
    (package / "inner").mkdir(parents=True)
    texts = {"__init__": "", "a": "import house.inner.b", "inner/__init__": "", "inner/c": "x = 1"}
    for name, text in {**texts, "inner/b": back}.items():
        (package / f"{name}.py").write_text(text)
    found = circle_in(import_graph(package))
    assert set(found) == ({"house.a", "house.inner.b"} if circle else set())


@pytest.mark.parametrize("folder", [SOURCE, TESTS], ids=["src", "tests"])
def test_folders_hold_few_files(folder):
    assert crowded(folder) == {}


def test_a_crowded_folder_is_found(tmp_path):
    room = tmp_path / "room"
    room.mkdir()
    for name in ("__init__", *(f"m{number}" for number in range(FOLDER_FILES))):
        (room / f"{name}.py").touch()
    assert crowded(tmp_path) == {}
    (room / "one_more.py").touch()
    assert crowded(tmp_path) == {"room": FOLDER_FILES + 1}


@pytest.mark.parametrize("path", [p for p in MODULES if part_of(p) == "tree"], ids=name_of)
def test_the_tree_knows_torch_and_nothing_else(path):
    import sys

    outside = {name.split(".")[0] for _, name in imported(path)} - set(sys.stdlib_module_names)
    assert outside - TREE_MAY_IMPORT <= {"specblock"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_and_functions_are_short(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MODULE_LINES
    long = [
        f"{node.name}: {length} lines"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := node.end_lineno - node.lineno) > FUNCTION_LINES
    ]
    assert not long


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_the_environment_steers_nothing(path):
    """Behaviour is set by arguments and configs; only the cache folder follows the platform."""
    found = [
        node
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "putenv"))
        or (isinstance(node, ast.alias) and node.name in ("environ", "getenv", "putenv"))
    ]
    allowed = 1 if path.name == "storage.py" else 0
    assert len(found) <= allowed, [node.lineno for node in found]


def test_only_the_xdg_standard_is_read_from_the_environment():
    tree = ast.parse((SOURCE / "storage.py").read_text(encoding="utf-8"))
    asked = [
        node.args[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Attribute)
        and node.func.value.attr == "environ"
    ]
    assert asked == ["XDG_CACHE_HOME"]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_bare_or_broad_except(path):
    broad = {"Exception", "BaseException"}
    wrong = [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or getattr(node.type, "id", "") in broad)
        and not any(isinstance(inner, ast.Raise) and inner.exc is None for inner in node.body)
    ]
    assert not wrong, wrong
