"""Work that ends early for a stop request, and output that survives its reader."""

import os
import subprocess
import sys
import threading
import time

import pytest

from pbrl_jax.core import stopping


def test_threads_give_all_results_in_order_and_raise_errors():
    assert stopping.map_until_stop(lambda x: x * x, range(20), 4) == [x * x for x in range(20)]
    assert stopping.map_until_stop(str, [], 4) == []
    with pytest.raises(ZeroDivisionError):
        stopping.map_until_stop(lambda x: 1 // x, [1, 0, 1], 2)


def test_a_request_leaves_slow_work_behind():
    """What was finished comes back; a thread that hangs is not waited for."""
    release = threading.Event()
    threading.Timer(0.3, stopping.request_stop).start()
    started = time.monotonic()
    found = stopping.map_until_stop(lambda x: release.wait(30) if x == 2 else x, [0, 1, 2, 3, 4], 2)
    release.set()
    assert time.monotonic() - started < 5 and found == [0, 1, None, 3, 4]
    with pytest.raises(stopping.Interrupted):
        stopping.check_stop()


def test_one_of_several_hosts_does_not_end_alone():
    stopping.clear_request(alone=False)
    stopping.request_stop()
    stopping.check_stop()
    assert stopping.stop_requested() and stopping.map_until_stop(str, [1, 2], 2) == ["1", "2"]


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_closed_pipe_does_not_end_the_process(tmp_path, unbuffered):
    code = (
        "import sys\nfrom pbrl_jax.core.output import keep_output\nkeep_output()\nkeep_output()\n"
        "for n in range(20000): print('line', n); print('error', n, file=sys.stderr)\n"
        "sys.stdout.flush()\nopen(sys.argv[1], 'w').write('done')\n"
    )
    line = f'{sys.executable} -c "$CODE" {tmp_path / "end"} 2>&1 | head -n 1; exit ${{PIPESTATUS[0]}}'
    environment = {**os.environ, "CODE": code, "PYTHONUNBUFFERED": unbuffered}
    result = subprocess.run(["bash", "-c", line], env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0 and (tmp_path / "end").read_text() == "done", result.stderr
