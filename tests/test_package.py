"""What is shipped: the wheel's files, the site's pages, and what stands beside the code. PBRL_WHEEL=1 builds the wheel
and runs it with this environment's dependencies; PBRL_WHEEL=install also installs those that it names, for each Python
3.11 or newer on PATH, or for those that PBRL_WHEEL_PYTHON names (paths with : between)."""

import importlib
import os
import re
import shutil
import site
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from source_tree import PACKAGE, ROOT

import pbrl_jax
from pbrl_jax.core.version import __version__

SETUP = (ROOT / "setup.py").read_text("utf-8")
PAGES = [*sorted((ROOT / "docs").glob("*.md")), *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING"))]
ALONE = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
"""The environment without the checkout."""
WHEEL = os.environ.get("PBRL_WHEEL", "")


def listed() -> dict:
    names: dict = {}
    exec(SETUP.partition("root = Path")[0], names)
    return names


def site_config() -> dict:
    return yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))


def test_every_file_of_the_package_is_in_the_wheel():
    globs = re.findall(r'^ +"([^"]+)",?$', SETUP.partition("package_data={")[2].partition("]")[0], re.MULTILINE)
    found = {file for glob in globs for file in PACKAGE.glob(glob)}
    files = {f for f in PACKAGE.rglob("*") if f.is_file() and f.suffix not in (".py", ".pyc")}
    assert files <= found, "list them under package_data of setup.py"
    folders = {f.parent.relative_to(ROOT).as_posix() for f in (ROOT / "configs").rglob("*.py")}
    assert set(listed()["CONFIGS"].values()) == folders, "name every folder of configs in CONFIGS of setup.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    for link, anchor in re.findall(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)", text):
        target = (page.parent / link) if link else page
        assert target.exists(), f"{page.name} links to {link}"
        if anchor and target.suffix == ".md":
            heads = re.findall(r"^#+ (.+)$", target.read_text("utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
            assert anchor in slugs, f"{page.name} links to {link}#{anchor}, which has {sorted(slugs)}"


def test_the_site_has_every_page():
    def files(entries) -> list[str]:
        return [
            f for e in entries for value in e.values() for f in ([value] if isinstance(value, str) else files(value))
        ]

    named = files(site_config()["nav"])
    assert sorted(named) == sorted(page.name for page in PAGES if page.parent.name == "docs")


def test_the_reference_names_every_public_name():
    text = (ROOT / "docs" / "reference.md").read_text("utf-8")
    entries = re.findall(r"^::: (\S+)$", text, re.MULTILINE)
    assert sorted(entry.rpartition(".")[2] for entry in entries) == sorted(pbrl_jax.NAMES)
    for entry in entries:
        module, _, name = entry.rpartition(".")
        assert getattr(importlib.import_module(module), name).__doc__, f"{entry} has no docstring"


def test_extras_are_quoted():
    """A shell such as zsh takes brackets for a pattern."""
    files = [*PAGES, *PACKAGE.rglob("*.py"), *(ROOT / "launch").glob("*.sh")]
    bare = [f"{file.name}: {line}" for file in files for line in file.read_text("utf-8").splitlines()
            if re.search(r"install .*(?<![\"'])\.\[\w", line)]  # fmt: skip
    assert not bare, bare


def test_what_stands_beside_the_code():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == __version__ and "2509.25543" in citation["preferred-citation"]["url"]
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text("utf-8"))
    steps = [step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"]]
    assert "bash .ci/run" in steps
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"][0]["hooks"]
    assert [hook["id"] for hook in hooks] == ["ruff-check", "ruff-format"]
    for name in ("CONTRIBUTING.md", "CHANGELOG.md"):
        for path in re.findall(r"`((?:pbrl_jax|tests)/[\w/]+\.(?:py|json))`", (ROOT / name).read_text("utf-8")):
            assert "NAME" in path or "SECTION" in path or (ROOT / path).exists(), f"{name} names {path}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy of the sources."""
    if not WHEEL:
        pytest.skip("builds and installs the wheel: set PBRL_WHEEL=1 (or install, which downloads its dependencies)")
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pbrl_jax", "configs"):
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(folder / "source")]
    subprocess.run([*pip, *build], check=True)
    shutil.rmtree(folder / "source")
    (file,) = folder.glob("*.whl")
    return file


def interpreters() -> list[str]:
    """The Pythons that PBRL_WHEEL_PYTHON names; else this one, and where dependencies are installed all on PATH."""
    if given := os.environ.get("PBRL_WHEEL_PYTHON"):
        return given.split(os.pathsep)
    found = [shutil.which(f"python3.{minor}") for minor in range(11, 20)] if WHEEL == "install" else [sys.executable]
    return [python for python in found if python] or [sys.executable]


@pytest.fixture(scope="module", params=interpreters(), ids=lambda python: Path(python).name)
def installed(wheel, request, tmp_path_factory) -> Path:
    """The `pbrl` of an environment that has the wheel and no checkout."""
    folder = tmp_path_factory.mktemp("env")
    subprocess.run([request.param, "-m", "venv", str(folder)], check=True, env=ALONE)
    python = folder / "bin" / "python"
    ask = "import sysconfig; print(sysconfig.get_python_version())"
    version = subprocess.check_output([str(python), "-c", ask], text=True, env=ALONE).strip()
    lock = ROOT / "launch" / f"requirements-{version}.lock"
    options = ["--no-deps"] if WHEEL != "install" else ["-c", str(lock)] if lock.exists() else []
    subprocess.run([str(python), "-m", "pip", "-q", "install", *options, str(wheel)], check=True, env=ALONE)
    if WHEEL != "install":
        (packages,) = folder.glob("lib/*/site-packages")
        (packages / "borrowed.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    yield folder / "bin" / "pbrl"
    shutil.rmtree(folder)


def test_the_wheel_runs_without_a_checkout(installed, tmp_path):
    def pbrl(*words: str) -> str:
        words = (str(installed), *words)
        done = subprocess.run(words, cwd=tmp_path, env=ALONE, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    where = [str(installed.with_name("python")), "-c", "import pbrl_jax; print(pbrl_jax.__file__)"]
    assert str(installed.parents[1]) in subprocess.check_output(where, cwd=tmp_path, env=ALONE, text=True)
    assert pbrl("--version").split()[:2] == ["pbrl_jax", __version__]
    for name in ("tiny_cpu", "quickstart"):
        assert '"policy"' in pbrl("train", name, "--workdir", "w", "--dry-run", "--devices", "1")


def test_the_package_runs_as_a_module():
    found = subprocess.run([sys.executable, "-m", "pbrl_jax", "--version"], capture_output=True, text=True)
    assert found.returncode == 0 and found.stdout == f"pbrl_jax {__version__}\n"
