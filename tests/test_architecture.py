"""The house rules that a machine can check: who imports whom, and how long things are."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "specblock"
MODULES = sorted(SOURCE.rglob("*.py"))
MODULE_LINES, FUNCTION_LINES = 300, 50

# Imports run downwards only: a part may use the parts of its own level and of lower ones. What is
# not listed here may be imported by nothing but the package's own __init__.
LEVELS = {
    "errors": 0,
    "config": 1,
    "storage": 1,
    "data": 1,
    "weights": 1,
    "tree": 1,
    "kernels": 1,
    "target": 2,
    "drafters": 2,
    "engine": 3,
    "training": 3,
    "adaptation": 3,
    "bench": 4,
    "serving": 4,
    "cli": 5,
    "__init__": 6,
    "__main__": 6,
}
OWN_LEVEL = {"config": {"tree"}, "storage": set(), "tree": {"tree"}}  # stricter than the levels
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
