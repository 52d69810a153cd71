"""The house: ranks, no circles, short files and functions, no dead settings, no heavy or foreign imports."""

import ast
import dataclasses
import typing

import pytest
from config_reads import config_reads
from source_tree import CODE_FOLDERS, PACKAGE, ROOT, imported_names, module_name, python_files, tree_of

RANKS = {
    "core": 0,
    "config": 1,
    "mesh": 2,
    "logs": 3, "algos": 3, "text": 3, "models": 3,
    "weights": 4,
    "data": 5, "rollout": 5,
    "translate": 6, "pivots": 6, "checkpoint": 6,
    "rewards": 7,
    "train": 8, "eval": 8,
    "report": 9, "plan": 9,
    "run": 10,
    "quickstart": 11,
    "cli": 12, "__init__": 12,
    "__main__": 13,
}  # fmt: skip
"""Folder or top-level module of pbrl_jax -> rank. What is not listed has no place in the house."""

MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_PARAMETERS = 400, 60, 8
FOUNDATIONS = ("core", "config", "mesh", "models", "weights")
FORBIDDEN = ("torch", "tunix", "easydel", "EasyDeL", "maxtext", "MaxText", "jax.experimental.pjit")
LAZY = ("tensorflow", "tensorflow_text")

PACKAGE_FILES = python_files("pbrl_jax")


def part_of(module: str) -> str:
    """`pbrl_jax.logs.metrics` -> `core`; the package itself -> `__init__`."""
    return (module.split(".") + ["__init__"])[1]


def imported_modules(path) -> list[tuple[int, str]]:
    """(line, module) of the package's own modules that a file imports."""
    known = {module_name(file) for file in PACKAGE_FILES}
    found = []
    for line, name in imported_names(path, tree_of(path)):
        while name and name not in known:
            name = name.rpartition(".")[0]
        if name:
            found.append((line, name))
    return found


def wrong_imports(module: str, imports: list[tuple[int, str]]) -> list[str]:
    """Imports of `module` that do not point down or stay in its folder."""
    own = part_of(module)
    return [
        f"{module}, line {line}: imports {other} (rank {RANKS[part_of(other)]}), but {own} has rank {RANKS[own]}"
        for line, other in imports
        if part_of(other) != own and RANKS[part_of(other)] >= RANKS[own]
    ]


def find_circle(graph: dict[str, set[str]]) -> list[str]:
    """One circle of a graph as the list of its nodes, or []."""
    done: set[str] = set()

    def walk(node: str, trail: list[str]) -> list[str]:
        if node in trail:
            return [*trail[trail.index(node) :], node]
        if node in done:
            return []
        for following in sorted(graph.get(node, ())):
            if circle := walk(following, [*trail, node]):
                return circle
        done.add(node)
        return []

    for node in sorted(graph):
        if circle := walk(node, []):
            return circle
    return []


def long_functions(tree: ast.Module) -> list[tuple[str, int, int]]:
    """(name, line, length) of functions over the limit; decorators do not count."""
    spans = (
        (node.name, node.lineno, node.end_lineno - node.lineno + 1)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    return [span for span in spans if span[2] > MAX_FUNCTION_LINES]


def eager_imports(tree: ast.Module) -> set[str]:
    """Top-level packages imported outside of any function."""
    found: set[str] = set()
    todo: list[ast.AST] = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
        todo.extend(ast.iter_child_nodes(node))
    return found


def test_every_part_has_a_rank():
    unknown = {part_of(module_name(path)) for path in PACKAGE_FILES} - set(RANKS)
    assert not unknown, f"{sorted(unknown)} have no rank: add them to DESIGN's house and to RANKS, or move them"


def test_imports_point_down():
    wrong = [line for path in PACKAGE_FILES for line in wrong_imports(module_name(path), imported_modules(path))]
    assert not wrong, "\n".join(wrong)


def test_no_circles():
    graph = {module_name(path): {name for _, name in imported_modules(path)} for path in PACKAGE_FILES}
    for module, imports in graph.items():
        imports.discard(module)
    assert not (circle := find_circle(graph)), " -> ".join(circle)


def test_files_are_short():
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in python_files(*CODE_FOLDERS)}
    long = [f"{path.relative_to(ROOT)}: {lines} lines" for path, lines in lengths.items() if lines > MAX_FILE_LINES]
    assert not long, f"over {MAX_FILE_LINES} lines:\n" + "\n".join(long)


def test_functions_are_short():
    long = [
        f"{path.relative_to(ROOT)}, line {line}: {name} has {length} lines"
        for path in python_files(*CODE_FOLDERS)
        for name, line, length in long_functions(tree_of(path))
    ]
    assert not long, f"over {MAX_FUNCTION_LINES} lines:\n" + "\n".join(long)


def parameters_of(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Parameters of a function, without self."""
    names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def test_functions_have_few_parameters():
    """More belong in a record. `policy_loss` is a public contract; the writer and the bar are made in one place."""
    known = {"policy_loss", "MetricWriter.__init__", "Progress.__init__"}
    many = []
    for path in PACKAGE_FILES:
        tree = tree_of(path)
        classes = {id(f): node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for f in node.body}
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and parameters_of(node) > MAX_PARAMETERS:
                name = f"{classes[id(node)]}.{node.name}" if id(node) in classes else node.name
                if name not in known:
                    many.append(f"{path.relative_to(ROOT)}, line {node.lineno}: {name} has {parameters_of(node)}")
    assert not many, f"over {MAX_PARAMETERS} parameters:\n" + "\n".join(many)


def test_the_step_is_one_page():
    """`train/step.py` says what a step is, in order, without a generator; its functions take no more than it names."""
    path = PACKAGE / "train" / "step.py"
    text, tree = path.read_text(encoding="utf-8"), tree_of(path)
    assert len(text.splitlines()) <= 180
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Yield | ast.YieldFrom | ast.Lambda)]
    calls = ["draw(", "functions.rollout(", "functions.reward(", "functions.advantages(", "functions.update("]
    code = text[text.index("def train_step(") :]
    places = [code.index(call) for call in calls]
    assert places == sorted(places), "prompts, rollout, reward, advantages, update"


def reading_path(module: str) -> dict[str, int]:
    """Lines of a module and of all that it imports, lazily too, outside the rooms that know nothing of learning."""
    files = {module_name(path): path for path in PACKAGE_FILES}
    found, todo = {}, [module]
    while todo:
        name = todo.pop()
        if name not in found:
            found[name] = len(files[name].read_text(encoding="utf-8").splitlines())
            imports = [other for _, other in imported_modules(files[name])]
            todo += [other for other in imports if part_of(other) not in FOUNDATIONS]
    return found


def test_the_update_is_read_in_an_hour():
    lines = reading_path("pbrl_jax.train.update")
    assert len(lines) <= 12 and sum(lines.values()) <= 1400, f"{len(lines)} files, {sum(lines.values())} lines: {lines}"


def is_fixture_maker(path) -> bool:
    """Scripts that write fixtures may use the libraries that the fixtures are to agree with."""
    return path.name.startswith("make_") or bool({"peers", "fixture_makers"} & set(path.parts))


def test_no_foreign_imports():
    found = [
        f"{path.relative_to(ROOT)}, line {line}: {name}"
        for path in python_files(*CODE_FOLDERS)
        if not is_fixture_maker(path)
        for line, name in imported_names(path, tree_of(path))
        if any(name == other or name.startswith(other + ".") for other in FORBIDDEN)
    ]
    assert not found, "\n".join(found)


def test_tensorflow_is_imported_lazily():
    """It takes seconds and, on a GPU, all memory."""
    found = [path for path in python_files("pbrl_jax", "configs") if eager_imports(tree_of(path)) & set(LAZY)]
    assert not found, f"imported outside of functions: {[str(path.relative_to(ROOT)) for path in found]}"


def test_tests_import_no_other_test():
    """A test file's module name depends on how pytest was started; what tests share is in a file of helpers."""
    imports = {path: imported_names(path, tree_of(path)) for path in python_files("tests")}
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path, found in imports.items()
        for line, name in found
        if any(part.startswith("test_") for part in name.split(".")[:-1])
    ]
    assert not wrong, "\n".join(wrong)


def test_every_config_field_is_read():
    from pbrl_jax import Config

    sections = {name: kind for name, kind in typing.get_type_hints(Config).items() if dataclasses.is_dataclass(kind)}
    names = {name: kind.__name__ for name, kind in sections.items()}
    bases = {base.__name__: name for name, kind in sections.items() for base in kind.__mro__[1:-1]}
    reads = set()
    for path in PACKAGE_FILES:
        # Defining a field, checking it and writing it to JSON is not yet using it.
        if path.parent == PACKAGE / "config" or path == PACKAGE / "run" / "check.py":
            continue
        reads |= config_reads(tree_of(path), names, bases)
    fields = {(name, field.name) for name, kind in sections.items() for field in dataclasses.fields(kind)}
    dead = sorted(".".join(pair) for pair in fields - reads)
    assert not dead, f"nothing reads: {', '.join(dead)}"


# The checks themselves, on code that breaks each rule.


def test_checks_catch_an_upward_import():
    assert wrong_imports("pbrl_jax.core.paths", [(3, "pbrl_jax.text.languages")])
    assert wrong_imports("pbrl_jax.data.batches", [(3, "pbrl_jax.rollout.generate")]), "same rank, other folder"
    assert not wrong_imports("pbrl_jax.train.loop", [(1, "pbrl_jax.logs.metrics"), (2, "pbrl_jax.train.update")])


def test_checks_resolve_relative_imports():
    tree = ast.parse("from . import loop\nfrom ..core.log import MetricWriter\nimport pbrl_jax.algos.grpo\n")
    names = [name for _, name in imported_names(PACKAGE / "train" / "update.py", tree)]
    assert names == ["pbrl_jax.train.loop", "pbrl_jax.core.log.MetricWriter", "pbrl_jax.algos.grpo"]


def test_checks_catch_a_circle():
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert find_circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_checks_catch_a_long_function():
    body = "\n".join("    pass" for _ in range(MAX_FUNCTION_LINES))
    assert long_functions(ast.parse(f"def f():\n{body}\n")) == [("f", 1, MAX_FUNCTION_LINES + 1)]
    assert not long_functions(ast.parse(f"def f():\n{body[9:]}\n"))


def test_checks_tell_eager_from_lazy_imports():
    assert eager_imports(ast.parse("if x:\n    import tensorflow.data\n")) == {"tensorflow"}
    assert eager_imports(ast.parse("def f():\n    import tensorflow\n")) == set()


@pytest.mark.parametrize(
    "code, read",
    [
        ("def f(config):\n    return config.algo.beta", {("algo", "beta")}),
        ("def f(algo):\n    return algo.beta", {("algo", "beta")}),
        ("def f(c: AlgoConfig):\n    return c.beta", {("algo", "beta")}),
        ("def f(c: 'config.AlgoConfig | None'):\n    return c.beta", {("algo", "beta")}),
        ("def f(x):\n    o = x.config.optim\n    return o.b1", {("optim", "b1")}),
        ("def f(x):\n    a, o = x.algo, x.optim\n    return o.b1, a.beta", {("optim", "b1"), ("algo", "beta")}),
        ("class A:\n    c: AlgoConfig\n    def f(self):\n        return self.c.beta", {("algo", "beta")}),
        ("def f(c: AlgoConfig):\n    def g():\n        return c.beta\n    return g", {("algo", "beta")}),
        ("def f(c: AlgoConfig):\n    pass\ndef g(c):\n    return c.beta", set()),
        ("def f(c):\n    return settings_of(c.algo, AlgoConfig).beta", {("algo", "beta")}),
        ("def f(c):\n    return settings_of(c.algo, Scores).beta", set()),
        ("def f(c: AlgoConfig):\n    c.beta = 3", set()),
        ("def f(x):\n    return x.beta", set()),
        ("def f(algo: Scores):\n    return algo.beta", set()),
        ("def f(x):\n    algo = score(x)\n    return algo.beta", set()),
    ],
)
def test_config_reads_are_recognised(code, read):
    assert config_reads(ast.parse(code), {"algo": "AlgoConfig", "optim": "OptimConfig"}) == read
