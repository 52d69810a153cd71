"""Environments: a Python that runs is found, nothing is installed twice, and each failure is one named error."""

import shutil
import subprocess
import sys

import pytest
from launch.stand_ins import FAKE_PYTHON, Machine, assert_fails
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from source_tree import ROOT

SCRIPTS = sorted([*(ROOT / "launch").glob("*.sh"), ROOT / ".ci" / "run"])


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def installs(machine) -> list[str]:
    return [call for call in machine.calls if " -m pip install -e" in call]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse_and_are_strict(script):
    subprocess.run(["bash", "-n", script], check=True)
    assert "\nset -euo pipefail\n" in script.read_text()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed (apt-get install shellcheck)")
    subprocess.run(["shellcheck", "-x", "-P", ROOT / "launch", script], check=True)


def test_a_stub_that_fails_is_passed_over(machine):
    machine.add("python3.12", "#!/usr/bin/env bash\nexit 127\n")
    machine.add("python3.11", FAKE_PYTHON)
    result = machine.run("environment.sh")
    assert result.returncode == 0, result.stderr
    assert f"python3.11 -m venv --clear {machine.checkout}/.venv" in machine.calls
    assert installs(machine) == [f"python -m pip install -e {machine.checkout}"]


def test_no_python_is_one_error(machine):
    machine.add("python3", "#!/usr/bin/env bash\nexit 1\n")
    assert_fails(machine.run("environment.sh"), "no Python 3.11", "PYTHON")
    assert_fails(machine.run("environment.sh", PYTHON="python2"), "PYTHON=python2", "unset it")


def test_second_call_installs_nothing(machine):
    machine.add("python3.12", FAKE_PYTHON)
    for _ in range(2):
        assert machine.run("environment.sh", "dev", "lora").returncode == 0
    assert installs(machine) == [f"python -m pip install -e {machine.checkout}[dev,lora]"]


def test_what_changes_is_installed_again(machine, tmp_path):
    machine.add("python3.12", FAKE_PYTHON)
    machine.run("environment.sh", "dev")
    machine.run("environment.sh")
    assert len(installs(machine)) == 1, "a set that is installed with more is enough"
    machine.run("environment.sh", "lora")
    machine.run("environment.sh", "dev", "lora")
    assert len(installs(machine)) == 2, "another extra is added, the first one remembered"
    (machine.checkout / "setup.py").write_text("# other requirements")
    machine.run("environment.sh", "lora")
    machine.run("environment.sh", "dev")
    assert len(installs(machine)) == 4, "other requirements make all of it stale"


def test_tested_versions_are_installed(machine, tmp_path):
    """Those of the lock file for this Python; another one is installed again, and PBRL_LOCK=0 takes the newest."""
    machine.add("python3.12", FAKE_PYTHON)
    lock = machine.checkout / "launch" / f"requirements-{sys.version_info.major}.{sys.version_info.minor}.lock"
    for text, settings, expected in (
        ("jax==0.10.2\n", {}, lock.as_uri()),
        ("jax==0.10.3\n", {}, lock.as_uri()),
        ("jax==0.10.4\n", {"PBRL_LOCK": "0"}, ""),
    ):
        lock.write_text(text)
        machine.forget()
        result = machine.run("environment.sh", "dev", **settings)
        assert result.returncode == 0, result.stderr
        assert [call for call in machine.calls if call.startswith("constraint")] == [f"constraint {expected}"]


def test_uv_installs_with_the_settings_of_pip(machine):
    """Its indexes and the tested versions; pip installs where uv fails, cannot be had or is not wanted."""
    machine.add("python3.12", FAKE_PYTHON)
    lock = machine.checkout / "launch" / f"requirements-{sys.version_info.major}.{sys.version_info.minor}.lock"
    lock.write_text("jax==0.10.2\n")
    settings = {
        "PIP_CONFIG_FILE": "/dev/null", "PIP_INDEX_URL": "https://one/simple", "PIP_FIND_LINKS": "/wheels",
        "PIP_EXTRA_INDEX_URL": "https://two/simple https://three/simple",
    }  # fmt: skip
    assert machine.run("environment.sh", "dev", UV_STATUS="0", **settings).returncode == 0
    (call,) = [call for call in machine.calls if " -m uv pip" in call]
    for option in ("default-index=https://one/simple", "index=https://two/simple", "index=https://three/simple",
                   "find-links=/wheels"):  # fmt: skip
        assert f" --{option} " in call
    assert call.endswith(f" -e {machine.checkout}[dev]") and not installs(machine)
    assert f"constraints {lock.as_uri()} {lock.as_uri()}" in machine.calls
    for number, how in enumerate(({"UV_STATUS": "1"}, {}, {"UV_STATUS": "0", "PBRL_UV": "0"})):
        machine.forget()
        result = machine.run("environment.sh", f"extra{number}", **settings, **how)
        assert result.returncode == 0 and len(installs(machine)) == 1
        assert ("trying again with pip" in result.stderr) == (number == 0)


def test_a_lock_file_names_versions_alone(machine):
    machine.add("python3.12", FAKE_PYTHON)
    assert machine.run("environment.sh").returncode == 0
    result = machine.run("lock.sh", VIRTUAL_ENV=str(machine.checkout / ".venv"), PATH=(
        f"{machine.checkout}/.venv/bin:{machine.programs}:{machine.tools}"
    ))  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert (machine.checkout / "launch" / "requirements-3.99.lock").read_text() == "jax==0.10.2\nPyYAML==6.0\n"
    assert_fails(machine.run("lock.sh", "audit", VIRTUAL_ENV="x"), "pip-audit", "pip install pip-audit")


LOCKS = sorted((ROOT / "launch").glob("requirements-*.lock"))


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_lock_files_fit_the_requirements(lock):
    """Every requirement of setup.py has one version, within its bounds."""
    pins = dict(line.split("==") for line in lock.read_text().splitlines())
    found = {canonicalize_name(name): version for name, version in pins.items()}
    listed = {}
    exec((ROOT / "setup.py").read_text().partition("root = Path")[0], listed)
    for text in (*listed["REQUIREMENTS"], *listed["EXTRAS"]["dev"]):
        requirement = Requirement(text)
        assert requirement.specifier.contains(found[canonicalize_name(requirement.name)]), text


def test_a_failed_install_is_tried_again(machine):
    machine.add("python3.12", FAKE_PYTHON)
    assert machine.run("environment.sh", PIP_STATUS="1").returncode != 0
    assert machine.run("environment.sh").returncode == 0
    assert len(installs(machine)) == 2


def test_another_checkout_in_the_same_environment_installs_itself(machine, tmp_path):
    (tmp_path / "other").mkdir()
    other = Machine(tmp_path / "other")
    machine.add("python", FAKE_PYTHON)
    active = {"VIRTUAL_ENV": str(tmp_path)}
    for checkout in (machine, other, machine):
        settings = {"PATH": f"{machine.programs}:{machine.tools}", "CALLS": str(machine.calls_file)}
        assert checkout.run("environment.sh", **active, **settings).returncode == 0
    assert [call.split()[-1] for call in installs(machine)] == [str(m.checkout) for m in (machine, other, machine)]
    assert not (machine.checkout / ".venv").exists(), "an active environment is used as it is"


def test_an_active_environment_that_is_too_old_is_named(machine, tmp_path):
    machine.add("python", '#!/usr/bin/env bash\n[ "$1" = --version ] && echo Python 3.9.2\nexit 1\n')
    assert_fails(machine.run("environment.sh", VIRTUAL_ENV=str(tmp_path)), "Python 3.9.2", "3.11", "deactivate")


def test_quickstart_passes_its_arguments_on(machine, tmp_path):
    machine.add("python3.12", FAKE_PYTHON)
    machine.add("pbrl", '#!/usr/bin/env bash\necho "pbrl $* in $PWD" >>"$CALLS"\n')
    runs = machine.checkout / "runs" / "quickstart"
    cases = {
        (): f"--workdir {runs}",
        ("--controls",): f"--workdir {runs} --controls",
        ("w", "--seed", "3"): "--workdir w --seed 3",
    }
    for words, expected in cases.items():
        machine.forget()
        assert machine.run("quickstart.sh", *words, cwd=tmp_path).returncode == 0
        assert machine.calls[-1] == f"pbrl quickstart {expected} in {tmp_path}"


@pytest.mark.parametrize(
    "parallel, serial, words, status",
    [
        ("0", "0", (), 0),
        ("1", "0", (), 1),
        ("0", "1", (), 1),
        ("0", "5", (), 1),
        ("0", "5", ("tests/core",), 0),
        ("5", "0", ("-k", "resume"), 0),
        ("5", "5", ("-k", "nothing"), 1),
        ("4", "1", ("tests/core",), 1),
    ],
)
def test_test_script_runs_both_halves(machine, parallel, serial, words, status):
    machine.add("python3.12", FAKE_PYTHON)
    result = machine.run("test.sh", *words, PARALLEL_STATUS=parallel, SERIAL_STATUS=serial)
    assert result.returncode == status, result.stderr
    suffix = "".join(f" {word}" for word in words)
    calls = machine.calls[machine.calls.index("python -m ruff check .") :]
    calls.remove("python -m mypy")  # beside the tests
    how = "python -m pytest --durations=10 -n 3 --dist loadfile --no-loadscope-reorder"
    assert calls == ["python -m ruff check .", f"{how} -m not serial{suffix}", f"{how} -m serial{suffix}", "devices=8"]


def test_findings_of_the_type_checker_fail_the_test_script(machine):
    """After the tests, beside which it runs."""
    machine.add("python3.12", FAKE_PYTHON)
    result = machine.run("test.sh", TYPES_STATUS="1")
    assert result.returncode == 1 and "mypy with 1" in result.stderr + result.stdout
    assert "python -m mypy" in machine.calls and "devices=8" in machine.calls


def test_ci_names_the_data_beside_the_checkout(machine, tmp_path):
    (machine.checkout / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", machine.checkout / ".ci" / "run")
    (machine.checkout / "launch" / "test.sh").write_text('echo "data=${PBRL_DATA:-unset}"\n')
    assert machine.run("../.ci/run").stdout == "data=unset\n"
    (tmp_path / "shared" / "data").mkdir(parents=True)
    assert machine.run("../.ci/run").stdout == f"data={tmp_path}/shared/data\n"
