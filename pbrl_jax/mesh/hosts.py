"""Joining several processes into one run with `jax.distributed`, as environment variables say.

| launcher | recognised by |
| --- | --- |
| `launch/local.sh -n N`, or by hand | PBRL_COORDINATOR=host:port, PBRL_PROCESSES, PBRL_PROCESS |
| Slurm (srun) | SLURM_NTASKS above 1 |
| Open MPI (mpirun) | OMPI_COMM_WORLD_SIZE above 1 |
| `launch/tpu_vm.sh` | PBRL_HOSTS=auto: jax reads the machine's metadata |
| TPU pods of Kubernetes | TPU_WORKER_HOSTNAMES with several names, or MEGASCALE_NUM_SLICES above 1 |

If none of these is set, the run has one process. PBRL_LOST_SECONDS: see mesh.watch.
"""

import os
import socket
import sys
import time
from collections.abc import Mapping
from typing import NamedTuple

from pbrl_jax.core.errors import ConfigError
from pbrl_jax.mesh.watch import lost_seconds

REACH_SECONDS = 120
"""Time limit for reaching the coordinator."""
LATER_SECONDS = 30
"""Seconds after mesh.watch's limit at which jax itself ends the run."""


class Hosts(NamedTuple):
    """The processes of a run; the address is empty if jax finds it itself."""

    processes: int
    address: str = ""
    process: int = -1


def _number(environment: Mapping[str, str], name: str, least: int) -> int:
    text = environment.get(name, "")
    if not text.isdigit() or int(text) < least:
        raise ConfigError(
            f"{name} is {text!r}; expected a number of at least {least}, as launch/local.sh -n N sets it."
        )
    return int(text)


def hosts_of(environment: Mapping[str, str]) -> Hosts:
    """The processes of this run, from environment variables.

    Raises:
      ConfigError: PBRL_COORDINATOR without PBRL_PROCESSES and PBRL_PROCESS, or with values that do not fit.
    """
    if address := environment.get("PBRL_COORDINATOR", ""):
        count, process = _number(environment, "PBRL_PROCESSES", 1), _number(environment, "PBRL_PROCESS", 0)
        if process >= count:
            raise ConfigError(f"PBRL_PROCESS is {process}, but PBRL_PROCESSES is {count}: they count from 0.")
        if not address.rpartition(":")[2].isdigit() or not address.rpartition(":")[0]:
            raise ConfigError(f"PBRL_COORDINATOR is {address!r}; expected host:port, for example 10.0.0.1:8476.")
        return Hosts(count, address, process)
    for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"):
        launched = name != "SLURM_NTASKS" or "SLURM_STEP_NODELIST" in environment  # sbatch's own shell is not a task
        if launched and environment.get(name, "").isdigit() and int(environment[name]) > 1:
            return Hosts(int(environment[name]))
    slices = environment.get("MEGASCALE_NUM_SLICES", "1")
    workers = environment.get("TPU_WORKER_HOSTNAMES", "").count(",") + 1
    return Hosts(workers * (int(slices) if slices.isdigit() else 1))


def refuse_several(verb: str, count: int | None = None) -> None:
    """Raise ConfigError if there are several processes; `count`: their number, by default from the environment.

    For commands that run on one host: each process would do all the work and write to the same files.
    """
    count = hosts_of(os.environ).processes if count is None else count
    if count > 1:
        raise ConfigError(
            f"`pbrl {verb}` runs on one host, with all its devices, and this is one of {count} processes. Start "
            "one; `pbrl train` can be run by several."
        )


def wait_for(address: str, seconds: float = REACH_SECONDS, pause: float = 1.0) -> None:
    """Wait until a server accepts connections at the address.

    Raises:
      ConfigError: none does within `seconds`; names the address.
    """
    host, _, port = address.rpartition(":")
    start = time.monotonic()
    while True:
        try:
            with socket.create_connection((host, int(port)), timeout=max(pause, 0.1)):
                return
        except OSError as error:
            waited = time.monotonic() - start
            if waited >= seconds:
                raise ConfigError(
                    f"The coordinator {address} could not be reached in {waited:.0f} s ({error}). Check that process 0 "
                    "runs, that the address is that of its host, and that no firewall closes the port."
                ) from error
        time.sleep(pause)


def join_hosts(environment: Mapping[str, str] = os.environ, seconds: float = REACH_SECONDS) -> int:
    """Join the other processes of this run, before jax initialises its devices; returns the number of processes.

    Raises:
      ConfigError: invalid environment variables, or a coordinator that cannot be reached.
    """
    hosts, automatic = hosts_of(environment), environment.get("PBRL_HOSTS") == "auto"
    if hosts.processes == 1 and not automatic:
        return 1
    import jax

    heartbeat = int(lost_seconds()) + LATER_SECONDS
    jax.config.update("jax_enable_preemption_service", False)  # train.signals handles SIGTERM
    if not hosts.address:
        jax.distributed.initialize(heartbeat_timeout_seconds=heartbeat)
    else:
        if hosts.process > 0:
            wait_for(hosts.address, seconds)
        jax.distributed.initialize(
            hosts.address, hosts.processes, hosts.process, heartbeat_timeout_seconds=heartbeat,
            initialization_timeout=int(seconds),
        )  # fmt: skip
    if jax.process_index() > 0:
        sys.stdout = open(os.devnull, "w")  # host 0 prints; errors come from every host
    return jax.process_count()
