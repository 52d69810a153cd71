"""Who takes part in a run, told by the environment of each launcher."""

import socket

import pytest

from pbrl_jax.core.errors import ConfigError
from pbrl_jax.mesh.hosts import Hosts, hosts_of, join_hosts, wait_for

OWN = {"PBRL_COORDINATOR": "10.0.0.1:99", "PBRL_PROCESSES": "4", "PBRL_PROCESS": "3"}


@pytest.mark.parametrize(
    "environment, expected",
    [
        ({}, Hosts(1)),
        (OWN, Hosts(4, "10.0.0.1:99", 3)),
        ({"SLURM_NTASKS": "16", "SLURM_STEP_NODELIST": "n[1-2]"}, Hosts(16)),
        ({"SLURM_NTASKS": "16"}, Hosts(1)),
        ({"SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "n1"}, Hosts(1)),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, Hosts(2)),
        ({"TPU_WORKER_HOSTNAMES": "a,b,c,d"}, Hosts(4)),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "MEGASCALE_NUM_SLICES": "2"}, Hosts(4)),
    ],
)
def test_launchers(environment, expected):
    assert hosts_of(environment) == expected


@pytest.mark.parametrize(
    "change, said",
    [
        ({"PBRL_PROCESSES": ""}, "PBRL_PROCESSES"),
        ({"PBRL_PROCESS": "four"}, "PBRL_PROCESS is 'four'"),
        ({"PBRL_PROCESS": "4"}, "count from 0"),
        ({"PBRL_COORDINATOR": "somewhere"}, "host:port"),
    ],
)
def test_settings_that_do_not_fit(change, said):
    with pytest.raises(ConfigError, match=said):
        hosts_of(OWN | change)


def test_a_process_alone_does_nothing():
    assert join_hosts({}) == 1


def test_a_coordinator_that_is_not_there_is_named_with_the_seconds_waited():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and not listening
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match=rf"{address} could not be reached in \d+ s"):
            join_hosts({"PBRL_COORDINATOR": address, "PBRL_PROCESSES": "2", "PBRL_PROCESS": "1"}, seconds=0)
        taken.listen()
        wait_for(address, seconds=0)
