"""The layout: short scripts and functions, no import of a script or a cycle in the package, one list of the methods."""

import ast
import re
import subprocess

import pytest
from test_prose import ROOT

from cox_oom.methods import METHODS

SCRIPTS = ("extract_features", "train_connect", "train_explore", "evaluate")
MODULES = {
    ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p
    for p in ROOT.glob("cox_oom/**/*.py")
}
CODE = [*MODULES.values(), *(ROOT / f"{s}.py" for s in SCRIPTS), *ROOT.glob("cox_ops/*.py")]


def functions(path):
    """(name, lines) of every function of a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            yield node.name, node.end_lineno - node.lineno + 1


def imports(path, top=False):
    """Modules of this repository that a file imports; `top`: when it is itself imported."""
    tree = ast.parse(path.read_text())
    for node in tree.body if top else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for a in node.names:
                whole = f"{node.module}.{a.name}"
                yield whole if whole in MODULES else node.module


def test_the_root_holds_four_scripts():
    assert {p.stem for p in ROOT.glob("*.py")} == {*SCRIPTS, "setup"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_is_short(script):
    path = ROOT / f"{script}.py"
    assert len(path.read_text().splitlines()) <= 200
    assert dict(functions(path))["main"] <= 80


@pytest.mark.parametrize("path", CODE, ids=[str(p.relative_to(ROOT)) for p in CODE])
def test_functions_are_short(path):
    long = {name: n for name, n in functions(path) if n > (80 if name in ("main", "correspond") else 60)}
    assert not long


def test_no_module_imports_a_script():
    for name, path in MODULES.items():
        assert not set(imports(path)) & set(SCRIPTS), name


def test_no_import_cycle():
    """Depth first over what modules import at their top: a module that leads back to itself is named with its way."""
    edges = {m: sorted({i for i in imports(p, top=True) if i in MODULES} - {m}) for m, p in MODULES.items()}
    done = set()

    def visit(module, way):
        assert module not in way, " -> ".join([*way[way.index(module) :], module])
        if module not in done:
            for other in edges[module]:
                visit(other, [*way, module])
            done.add(module)

    for module in edges:
        visit(module, [])
    assert len(done) == len(MODULES) > 30


def test_methods_are_listed_once():
    """No other file of the program lists six methods in a row: METHODS is the only list."""
    names = "|".join(METHODS)
    listed = re.compile(rf"(\b({names})\b[\"' ,]+){{6}}")
    files = [*CODE, ROOT / "run.sh", *ROOT.glob("experiments/*.sh"), *ROOT.glob("experiments/*.py")]
    assert not [str(p) for p in files if listed.search(p.read_text())]
    said = subprocess.run(["bash", "-n", str(ROOT / "run.sh")], capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
