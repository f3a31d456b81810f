"""The house's rules on imports, sizes and docstrings, read from the syntax trees and applied to any tree."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("bench", "models")
MAX_LINES = 350
TORCH_FREE = (
    *("bench.records", "bench.stats", "bench.tables", "bench.figures", "bench.report", "bench.cli"),
    *("bench.gate.comparison", "bench.gate.report", "bench.side_by_side"),
)

DISTRIBUTIONS = {"kaldi_native_fbank": "kaldi-native-fbank", "yaml": "pyyaml"}
"""Packages to install, by the module that they provide, where the names differ."""

# Each layer may import itself and those before it. What `models` holds beside the names below is a building block.
LAYERS = ("interface", "building block", "decoding", "family", "registry", "bench")


def executed(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what runs when a module is imported: not the bodies of functions, nor what only type checkers read."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from executed(child)


class Tree:
    """The modules of `bench` and `models` under a root, with what each imports anywhere and what it loads at once."""

    def __init__(self, root: Path) -> None:
        self.files = {
            ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
            for package in PACKAGES
            for path in sorted((root / package).rglob("*.py"))
        }
        self.syntax = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in self.files.items()}
        self.imports = {name: set(self._imported(name, ast.walk(self.syntax[name]))) for name in self.files}
        self.loads = {name: set(self._imported(name, executed(self.syntax[name]))) for name in self.files}

    def _imported(self, name: str, nodes: Iterable[ast.AST]) -> Iterator[str]:
        """Yield every module that `nodes` of the file of `name` import; of a local package, the submodules meant."""
        is_package = self.files[name].name == "__init__.py"
        for node in nodes:
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    parts = name.split(".")
                    parent = parts[: len(parts) - node.level + is_package]
                    base = ".".join([*parent, base] if base else parent)
                submodules = {f"{base}.{alias.name}" for alias in node.names} & self.files.keys()
                yield from submodules or {base}

    def layer(self, name: str) -> int:
        """Return the index in LAYERS of a local module."""
        if name.split(".", maxsplit=1)[0] == "bench":
            return LAYERS.index("bench")
        if name in ("models", "models.interface"):
            return LAYERS.index("interface")
        if name.split(".")[1] == "decoding":
            return LAYERS.index("decoding")
        if name == "models.registry":
            return LAYERS.index("registry")
        return LAYERS.index("family" if self._defines_family(name) else "building block")

    def _defines_family(self, name: str) -> bool:
        for node in self.syntax[name].body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            if any(isinstance(target, ast.Name) and target.id == "FAMILY" for target in targets):
                return True
        return False

    @property
    def torch_free(self) -> list[str]:
        """The modules that must load no torch: those of TORCH_FREE and what lies in them."""
        return [name for name in self.files if any(f"{name}.".startswith(f"{free}.") for free in TORCH_FREE)]

    def reachable(self, name: str) -> dict[str, list[str]]:
        """Return everything that importing `name` loads, with the chain of imports that leads there."""
        chains = {name: [name]}
        todo = [name]
        while todo:
            current = todo.pop()
            parts = current.split(".")
            packages = {".".join(parts[:i]) for i in range(1, len(parts))}
            for imported in sorted(self.loads.get(current, set()) | (packages & self.files.keys())):
                if imported not in chains:
                    chains[imported] = [*chains[current], imported]
                    todo.append(imported)
        return chains


def violations(root: Path) -> list[str]:
    """Return what breaks a rule in the tree under `root`, a line each."""
    tree = Tree(root)
    return [*_import_violations(tree), *_torch_violations(tree), *_file_violations(tree)]


def _import_violations(tree: Tree) -> Iterator[str]:
    family = LAYERS.index("family")
    for name, imports in tree.imports.items():
        for imported in sorted((imports & tree.files.keys()) - {name}):
            mine, other = tree.layer(name), tree.layer(imported)
            if other > mine:
                yield f"{name} ({LAYERS[mine]}) imports {imported} ({LAYERS[other]})"
            elif mine == other == family:
                yield f"{name} imports another family, {imported}"


def _torch_violations(tree: Tree) -> Iterator[str]:
    for name in tree.torch_free:
        for imported, chain in tree.reachable(name).items():
            if imported.split(".")[0] == "torch":
                yield f"{name} reaches torch: {' -> '.join(chain)}"


def _file_violations(tree: Tree) -> Iterator[str]:
    for name, path in tree.files.items():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MAX_LINES:
            yield f"{name} has {lines} lines, more than {MAX_LINES}"
        last = name.split(".")[-1]
        if (not last.startswith("_") or last == "__main__") and not ast.get_docstring(tree.syntax[name]):
            yield f"{name} has no docstring"


def test_the_project_keeps_its_rules():
    assert violations(ROOT) == []


def test_the_rules_see_the_project():
    """Guards the guard: a tree that is read wrongly has no violations either."""
    tree = Tree(ROOT)
    families = {name for name in tree.files if name.startswith("models.") and LAYERS[tree.layer(name)] == "family"}
    assert {"models.transformer", "models.ctc"} <= families
    assert all("models.interface" in tree.imports[name] for name in families)
    assert set(TORCH_FREE) <= tree.files.keys()


CLEAN = {
    "bench/__init__.py": "",
    "bench/records.py": "import csv\n",
    "bench/stats.py": "from bench.records import Record\n",
    "bench/tables.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from torch import Tensor\n",
    "bench/figures/__init__.py": "from bench import stats\ndef device():\n    import torch\n",
    "bench/training.py": "import torch\nfrom models.interface import Model\nfrom models.registry import load_family\n",
    "models/__init__.py": "",
    "models/interface.py": "import torch\n",
    "models/layers.py": "from models.interface import PAD\n",
    "models/decoding/__init__.py": "",
    "models/decoding/autoregressive.py": "from models.layers import Decoder\n",
    "models/registry.py": "import models\nfrom models.interface import Family\n",
    "models/one.py": "from models.decoding.autoregressive import greedy\nFAMILY = Family()\n",
    "models/two.py": "from models.layers import Encoder\nFAMILY: Family = Family()\n",
}


def plant(root: Path, files: dict[str, str]) -> Path:
    """Write the clean tree with `files` laid over it; a docstring heads each file that is not given with its own."""
    for name, code in (CLEAN | files).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code if code.startswith(('"', "#")) else f'"""Docstring."""\n{code}', encoding="utf-8")
    return root


def test_a_clean_tree_has_no_violations(tmp_path: Path):
    assert violations(plant(tmp_path, {})) == []


@pytest.mark.parametrize(
    ("file", "code", "violation"),
    [
        ("models/one.py", "import models.two\nFAMILY = 1\n", "models.one imports another family, models.two"),
        ("models/one.py", "from models import two\nFAMILY = 1\n", "models.one imports another family, models.two"),
        ("models/one.py", "from . import two\nFAMILY = 1\n", "models.one imports another family, models.two"),
        ("models/one.py", "from .two import X\nFAMILY = 1\n", "models.one imports another family, models.two"),
        (
            "models/one.py",
            "def f():\n    from models.two import X\nFAMILY = 1\n",
            "models.one imports another family, models.two",
        ),
        (
            "models/decoding/__init__.py",
            "from ..two import X\n",
            "models.decoding (decoding) imports models.two (family)",
        ),
        ("models/layers.py", "import bench.records\n", "models.layers (building block) imports bench.records (bench)"),
        ("models/one.py", "import bench\nFAMILY = 1\n", "models.one (family) imports bench (bench)"),
        (
            "models/interface.py",
            "from models.layers import X\n",
            "models.interface (interface) imports models.layers (building block)",
        ),
        (
            "models/length.py",
            "from models.decoding.autoregressive import X\n",
            "models.length (building block) imports models.decoding.autoregressive (decoding)",
        ),
        ("models/edits.py", "import models.one\n", "models.edits (building block) imports models.one (family)"),
        ("bench/records.py", "from torch import Tensor\n", "bench.records reaches torch: bench.records -> torch"),
        (
            "bench/tables.py",
            "from bench.training import X\n",
            "bench.tables reaches torch: bench.tables -> bench.training -> torch",
        ),
        (
            "bench/stats.py",
            "try:\n    from . import training\nexcept ImportError:\n    pass\n",
            "bench.figures reaches torch: bench.figures -> bench.stats -> bench.training -> torch",
        ),
        (
            "bench/figures/pareto.py",
            "import torch\n",
            "bench.figures.pareto reaches torch: bench.figures.pareto -> torch",
        ),
        ("bench/__init__.py", "import torch.nn\n", "bench.figures reaches torch: bench.figures -> bench -> torch.nn"),
        ("bench/tasks/base.py", "# no docstring\n", "bench.tasks.base has no docstring"),
        ("bench/__main__.py", "# no docstring\n", "bench.__main__ has no docstring"),
        ("models/two.py", "x = 1\n" * MAX_LINES, f"models.two has {MAX_LINES + 1} lines, more than {MAX_LINES}"),
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, file: str, code: str, violation: str):
    assert violation in violations(plant(tmp_path, {file: code}))


def test_presenting_loads_no_torch():
    """What the syntax trees cannot show: a third-party package that loads torch."""
    modules = Tree(ROOT).torch_free
    code = f"import sys, {', '.join(modules)}\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_dependencies_are_those_that_are_imported():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    dependencies = [*project["dependencies"], *project["optional-dependencies"]["peers"]]
    declared = {re.split(r"[^A-Za-z0-9_-]", dependency)[0] for dependency in dependencies}
    tree = Tree(ROOT)
    imported = {module.split(".", maxsplit=1)[0] for imports in tree.imports.values() for module in imports}
    assert {DISTRIBUTIONS.get(name, name) for name in imported - sys.stdlib_module_names - {*PACKAGES}} == declared


def test_special_ids_play_one_role_each():
    from models import interface

    ids = [getattr(interface, name) for name in ("PAD", "BOS", "EOS", "UNK", "MASK", "BLANK", "PLH")]
    assert sorted(ids) == list(range(interface.NUM_SPECIAL))
    assert len(set(interface.SPECIAL_NAMES)) == interface.NUM_SPECIAL
