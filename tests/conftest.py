"""Settings of the whole test process. They must stand before anything imports jax.

Tests marked `serial` need 8 virtual devices, and XLA reads their number once per process. So they run in a process of
their own, which launch/test.sh starts as

  PBRL_TEST_DEVICES=8 python -m pytest -m serial
"""

import atexit
import gc
import os
import shutil
import tempfile
from importlib.metadata import version

DEVICES = int(os.environ.get("PBRL_TEST_DEVICES") or 0)

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# A per-row bias that meets a per-token array must be an error. Set in the environment, so that child processes inherit.
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
# Most of a test's time is compilation, and nothing here is timed: compile 2.5 times faster, to slower programs.
FLAGS = ["--xla_backend_optimization_level=0"]
if version("jaxlib").startswith("0.10."):
    # Fewer, larger kernels in one piece: several times less to compile. Later versions do not know the first flag and
    # would stop.
    FLAGS += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
if DEVICES:
    # On a loaded machine the virtual devices of one collective may reach it minutes apart.
    FLAGS += [
        f"--xla_force_host_platform_device_count={DEVICES}",
        "--xla_cpu_collective_call_terminate_timeout_seconds=600",
    ]
# Workers of xdist inherit what their parent has set.
GIVEN = os.environ.get("XLA_FLAGS", "").split()
os.environ["XLA_FLAGS"] = " ".join([*GIVEN, *(flag for flag in FLAGS if flag not in GIVEN)])
# What one test, worker or child process has compiled, no other one compiles again. The folder lasts as long as the
# tests, so that a program's first compilation is still tested each time.
if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="pbrl_jax_programs_")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import pytest  # noqa: E402
import shape_checks  # noqa: E402
from quick_lowering import reuse_contexts  # noqa: E402

shape_checks.install()
reuse_contexts()
# Tracing makes many small objects that stay: looking for cycles among them takes a tenth of the time.
gc.set_threshold(100_000, 50, 100)

LONGEST = (
    "test_resume.py", "test_several_hosts.py", "test_held.py", "test_readme.py", "test_cli.py", "test_lost_hosts.py",
    "test_sharded.py", "test_chaos.py",
)  # fmt: skip
"""Files that begin first: a worker that began one of them last would leave the others idle."""


def pytest_collection_modifyitems(items):
    """The longest files first. Serial tests say how to run them where the process has no virtual devices."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))
    if DEVICES:
        return
    for item in items:
        if item.get_closest_marker("serial"):
            item.add_marker(pytest.mark.skip(reason="serial: run as PBRL_TEST_DEVICES=8 python -m pytest -m serial"))


@pytest.fixture(scope="session")
def driver(tmp_path_factory):
    """Runs `pbrl` commands in processes that need not import anything (see resume_driver), for a worker's files."""
    from resume_driver import Driver

    driver = Driver(tmp_path_factory.mktemp("driver"))
    yield driver
    driver.close()


@pytest.fixture(autouse=True)
def no_stop_request():
    """A stop that one test requests ends no other."""
    yield
    from pbrl_jax.core.stopping import clear_request

    clear_request(alone=True)
