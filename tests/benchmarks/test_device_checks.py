"""The checks for a new device hold on the CPU, and fail where a kernel is wrong."""

from benchmarks import device_checks
from benchmarks.device_checks import attention_kernels, kernel_checks, main


def test_they_hold_here(capsys):
    assert main(["--rows", "1", "--length", "32", "--prompts", "1"]) == 0
    assert capsys.readouterr().out.count("holds") == 4


def test_a_wrong_kernel_fails(monkeypatch):
    kernels = attention_kernels()
    wrong = kernels | {"chunked": lambda *arrays: 1.1 * kernels["chunked"](*arrays)}
    monkeypatch.setattr(device_checks, "attention_kernels", lambda: wrong)
    assert [check.holds for check in kernel_checks(1, 32)] == [True, False]
