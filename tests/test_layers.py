"""Imports run downwards only, the core needs core packages only, and importing changes no settings."""

import ast
import graphlib
import re
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "dgdlb_jax"
LAYERS = (
    "numerics", "model", "policies", "simulation", "equilibrium", "stability", "gradients", "fleets", "studies", "reports", "cli",
)  # fmt: skip
CORE = LAYERS[: LAYERS.index("fleets")]
PROJECT = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]


def names(requirements) -> set[str]:
    return {re.split(r"[\[<>=]", requirement)[0] for requirement in requirements}


CORE_PACKAGES = names(PROJECT["dependencies"]) | {"dgdlb_jax"} | sys.stdlib_module_names
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE)


def layer(module: str) -> str:
    """`model` for `dgdlb_jax.model.network`; the package itself for `dgdlb_jax`."""
    return ([*module.split("."), ""])[1]


def dotted_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


@cache
def imports(path: Path) -> list[tuple[int, str]]:
    """(line, absolute dotted name) of everything a module imports, inside functions as well."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = dotted_name(path).split(".")
            base = parents[: len(parents) - node.level + (path.stem == "__init__")] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            # `from dgdlb_jax import model` imports a layer, not a name.
            found += [(node.lineno, f"{name}.{alias.name}" if name == "dgdlb_jax" else name) for alias in node.names]
    return found


@pytest.mark.parametrize("path", MODULES, ids=dotted_name)
def test_imports_run_downwards_only(path):
    own = LAYERS.index(layer(dotted_name(path)))
    for line, name in imports(path):
        if name.split(".")[0] != "dgdlb_jax" or name == "dgdlb_jax.__version__":
            continue
        assert layer(name) in LAYERS, f"{path.name}:{line} imports {name}, which belongs to no layer"
        assert LAYERS.index(layer(name)) <= own, f"{path.name}:{line} imports {name} from a layer above its own"


def only_for_type_checkers(tree: ast.Module) -> set[ast.AST]:
    """What is never executed."""
    blocks = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
    return {inner for block in blocks for statement in block.body for inner in ast.walk(statement)}


def import_graph(package: Path) -> dict[str, set[str]]:
    """Module -> the modules of the package that it imports when it is loaded or when one of its functions runs."""
    paths = {".".join(p.relative_to(package.parent).with_suffix("").parts): p for p in package.rglob("*.py")}
    paths = {name.removesuffix(".__init__"): path for name, path in paths.items()}
    graph: dict[str, set[str]] = {}
    for module, path in paths.items():
        tree = ast.parse(path.read_text())
        found = set()
        for node in set(ast.walk(tree)) - only_for_type_checkers(tree):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                within = {alias: f"{node.module}.{alias}" for alias in (each.name for each in node.names)}
                found |= {name if name in paths else node.module for name in within.values()}
        graph[module] = (found & set(paths)) - {module, package.name}  # the package itself loads names on first use
    return graph


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The modules of a circle, in order; none if there is none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1][::-1]
    return []


def test_no_imports_run_in_circles():
    """Also not through an import inside a function, which only hides a circle."""
    found = circle(import_graph(PACKAGE))
    assert not found, " -> ".join(found)


@pytest.mark.parametrize("indirect", [False, True])
def test_circles_are_seen(tmp_path, indirect):
    package = tmp_path / "p"
    package.mkdir()
    lines = {
        "a": "from p import b",
        "b": "def late():\n    import p.c" if indirect else "from p.c import name",
        "c": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import p.a",
    }
    write = lambda: [(package / f"{name}.py").write_text(text) for name, text in lines.items()]
    write()
    assert circle(import_graph(package)) == []
    lines["c"] = "def late():\n    from p.a import name"
    write()
    assert set(circle(import_graph(package))) == {"p.a", "p.b", "p.c"}


@cache
def loaded_with(path: Path) -> list[tuple[int, str]]:
    """What `imports` finds outside functions and outside `if TYPE_CHECKING`: what loading the module loads."""
    tree = ast.parse(path.read_text())
    later = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
    ]
    lines = {
        child.lineno for node in later for child in ast.walk(node) if isinstance(child, ast.Import | ast.ImportFrom)
    }
    return [(line, name) for line, name in imports(path) if line not in lines]


def needs_extras(path: Path) -> bool:
    return any(name.split(".")[0] not in CORE_PACKAGES for _, name in loaded_with(path))


@pytest.mark.parametrize("path", [p for p in MODULES if layer(dotted_name(p)) in CORE], ids=dotted_name)
def test_core_needs_core_packages_only(path):
    """A module of the core that needs an extra package is loaded inside functions only, so that the core works without."""
    if needs_extras(path):
        return
    optional = {dotted_name(p) for p in MODULES if needs_extras(p)}
    for line, name in loaded_with(path):
        assert name not in optional, f"{path.name}:{line} loads {name}, which needs a package that is not in the core"


@pytest.mark.parametrize("path", MODULES, ids=dotted_name)
def test_what_is_imported_is_declared(path):
    """By the core where it belongs to the core, otherwise by an extra for users; inside functions as well."""
    core = layer(dotted_name(path)) in CORE
    extras = [
        PROJECT["optional-dependencies"][extra] for extra in ("xarray", *(() if core else ("cli", "cluster", "sweep")))
    ]
    declared = CORE_PACKAGES.union(*map(names, extras))
    for line, name in imports(path):
        assert name.split(".")[0] in declared, (
            f"{path.name}:{line} imports {name}, which pyproject.toml does not declare"
        )


def test_only_a_few_modules_of_the_core_need_extras():
    optional = {dotted_name(p) for p in MODULES if layer(dotted_name(p)) in CORE and needs_extras(p)}
    assert optional <= {"dgdlb_jax.simulation.dataset"}


@pytest.mark.parametrize("path", [p for p in PACKAGE.rglob("*.py") if "cli" not in p.parts], ids=dotted_name)
def test_settings_are_left_alone(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Attribute):
            continue
        text = ast.unparse(node)
        assert text != "jax.config.update", f"{path.name}:{node.lineno} changes jax.config: only the command line may"
        assert text not in ("os.environ", "os.putenv"), f"{path.name}:{node.lineno} touches the environment"


def test_the_test_of_layers_sees_the_package():
    assert {layer(dotted_name(path)) for path in MODULES} >= set(CORE)
