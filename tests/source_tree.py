"""The package as syntax trees, for tests that look at its structure."""

import ast
import functools
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "pbrl_jax"
CODE_FOLDERS = ("pbrl_jax", "tests", "benchmarks", "configs")


def python_files(*folders: str) -> list[Path]:
    """All Python files below these folders of the checkout, and setup.py where all code is asked for."""
    files = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return files + [ROOT / "setup.py"] * (folders == CODE_FOLDERS)


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def module_name(path: Path) -> str:
    """`pbrl_jax/logs/metrics.py` -> `pbrl_jax.logs.metrics`; a package's `__init__.py` has the name of its folder."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_names(path: Path, tree: ast.AST) -> list[tuple[int, str]]:
    """(line, dotted name) of everything imported, in functions too; `from a import b` gives `a.b`."""
    found = []
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            found += [(node.lineno, f"{base}.{alias.name}") for alias in node.names]
    return found
