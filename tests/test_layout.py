"""The shape of the source: what hal may name and import, its documentation, its sizes."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import hal
from hal.functions import FORMS

ROOT = Path(__file__).resolve().parent.parent
HAL = sorted((ROOT / "hal").rglob("*.py"))
SOURCES = [*HAL, *sorted((ROOT / "backends").rglob("*.py"))]

# Backends, vendors, their products, and torch's device types and shims.
FOREIGN = {
    *(
        "native",
        "triton",
        "cuda",
        "musa",
        "flashinfer",
        "mate",
        "cutlass",
        "cublas",
        "cudnn",
        "mudnn",
    ),
    *("sgl", "nvidia", "amd", "intel", "apple", "moore", "mthreads", "ascend"),
    *("cpu", "gpu", "hip", "rocm", "xpu", "npu", "mps", "hpu", "xla", "mtia"),
    *("meta", "privateuse", "privateuseone"),
}
ALLOWED = {
    ("hardware.py", "triton"): "a capability: whether Triton kernels compile and run",
    ("discovery.py", "native"): "the reference has to be known by name",
    ("subject.py", "cpu"): "where the kit's samples are made and its oracles compute",
    ("compat.py", "privateuse"): "torch's dispatch keys for devices it does not know",
    ("place.py", "privateuse"): "torch's spare type of device, which is simulated",
    ("simulate.py", "privateuse"): "torch's spare type of device, which is simulated",
    ("build.py", "cpu"): "the name of torch's library",
    ("codegen.py", "cpu"): "Inductor's code for a simulated device is that for the host",
}
# torch's device without data is not a device of any vendor.
WITHOUT_DATA = "meta"


def names_in(tree: ast.AST) -> Iterator[str]:
    """Identifiers and string constants, without docstrings."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    bodies = [node.body for node in ast.walk(tree) if isinstance(node, documented)]
    # A string that is a statement is a docstring, also after an attribute.
    loose = {id(s.value) for body in bodies for s in body if isinstance(s, ast.Expr)}
    for node in ast.walk(tree):
        for field in ("id", "attr", "arg", "name", "asname", "module"):
            value = getattr(node, field, None)
            if isinstance(value, str):
                yield value
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in loose:
            yield node.value


def words(name: str) -> set[str]:
    """The words of ``is_cuda``, ``PrivateUse1`` or a sentence, in lower case."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).replace("Private Use", "PrivateUse")
    return {word.lower() for word in re.findall(r"[A-Za-z]+", spaced)}


def foreign_in(path: Path) -> set[tuple[str, str]]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = {word for name in names_in(tree) for word in words(name)}
    return {(path.name, word) for word in found & FOREIGN - {WITHOUT_DATA}}


@pytest.mark.parametrize("path", HAL, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_hal_names_no_backend_vendor_or_device(path: Path) -> None:
    assert foreign_in(path) <= set(ALLOWED)


def test_what_is_allowed_is_needed() -> None:
    assert set(ALLOWED) <= set.union(*map(foreign_in, HAL))


def test_the_scan_sees_what_it_is_for() -> None:
    tree = ast.parse(
        '"""cuda"""\nx.is_cuda\ny = "musa:0"\nkey = "AutogradPrivateUse1"\nimport triton'
    )
    assert set.union(*map(words, names_in(tree))) & FOREIGN == {
        "cuda",
        "musa",
        "privateuse",
        "triton",
    }


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in HAL}


def imports(path: Path) -> set[str]:
    """The modules that ``path`` imports, wherever it does; for checkers only does not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & set(MODULES)
            found |= inner or {node.module}
    return found


GRAPH = {name: imports(path) for name, path in MODULES.items()}


def reached(start: str) -> set[str]:
    """The modules of hal that ``start`` needs, directly or not."""
    found: set[str] = set()
    pending = [start]
    while pending:
        for name in GRAPH[pending.pop()] & set(GRAPH) - found:
            found.add(name)
            pending.append(name)
    return found


def test_no_cycles() -> None:
    assert [name for name in GRAPH if name in reached(name)] == []


LAYERS = [
    "hal.op",
    "hal.ops",
    "hal.hookspecs",
    "hal.plugins",
    "hal.select",
    "hal.dispatch",
    "hal.cli",
]


@pytest.mark.parametrize("lower", LAYERS)
def test_dependencies_point_one_way(lower: str) -> None:
    above = set(LAYERS[LAYERS.index(lower) + 1 :])
    assert not reached(lower) & above


def test_hal_imports_no_backend() -> None:
    roots = {path.parent.name for path in (ROOT / "backends").glob("*/*/__init__.py")}
    assert roots
    assert not {name.partition(".")[0] for found in GRAPH.values() for name in found} & roots


# What they are is said by pluggy, by modules of their own, and by the distribution.
ELSEWHERE = {"graphs", "hookimpl", "ops", "__version__"}
PUBLIC = sorted(set(hal.__all__) - ELSEWHERE)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_documented(name: str) -> None:
    value = getattr(hal, name)
    doc = inspect.getdoc(value) or ""
    assert doc
    if not (isinstance(value, type) and issubclass(value, Exception)):
        assert "Example:\n    >>> " in doc


@pytest.mark.parametrize("name", hal.graphs.__all__)
def test_what_makes_graphs_is_documented(name: str) -> None:
    value = getattr(hal.graphs, name)
    doc = inspect.getdoc(value) or ""
    assert doc
    if inspect.isfunction(value):
        assert "Example:\n    >>> " in doc
        described = re.findall(
            r"^    (\w+): ", doc.partition("Args:\n")[2].partition("\n\n")[0], re.M
        )
        assert not described or described == list(inspect.signature(value).parameters)


@pytest.mark.parametrize("name", FORMS)
def test_ops_are_documented(name: str) -> None:
    form, doc = FORMS[name], inspect.getdoc(getattr(hal.ops, name)) or ""
    assert doc
    if form.inplace and not form.op.mutates:
        assert f"hal.ops.{form.op.name}" in doc  # It refers to the form that has it all.
        return
    described = re.findall(r"^    (\w+): ", doc.partition("Args:\n")[2].partition("\n\n")[0], re.M)
    assert described == list(form.op.signature.parameters)
    assert "Returns:\n" in doc
    assert "Example:\n    >>> " in doc


def listed_in(page: str, heading: str) -> set[str]:
    """The ``hal.<name>`` in backticks in the section of a page under ``heading``."""
    section = (ROOT / page).read_text(encoding="utf-8").partition(f"## {heading}\n")[2]
    return set(re.findall(r"`hal\.(\w+)", section.partition("\n## ")[0]))


def test_the_readme_lists_the_public_names() -> None:
    assert listed_in("README.md", "Names") == set(hal.__all__)


def test_all_is_sorted_and_true() -> None:
    assert hal.__all__ == sorted(hal.__all__)
    for module in map(importlib.import_module, MODULES):
        assert all(hasattr(module, name) for name in getattr(module, "__all__", ()))


# What is in Triton's language has a shape of its own.
PLAIN = [path for path in SOURCES if path.parent.name != "kernels"]


@pytest.mark.parametrize("path", PLAIN, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_modules_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300


def function_sizes() -> dict[str, int]:
    """Lines of each function body, without its docstring."""
    sizes: dict[str, int] = {}
    for path in PLAIN:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node, clean=False) else node.body
                size = body[-1].end_lineno - body[0].lineno + 1 if body else 0
                sizes[f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"] = size
    return sizes


def test_functions_are_short() -> None:
    sizes = function_sizes()
    ordered = sorted(sizes.values())
    assert {name: size for name, size in sizes.items() if size > 50} == {}
    assert ordered[len(ordered) // 2] <= 8
    assert ordered[len(ordered) * 9 // 10] <= 25
