"""Ctrl-C ends the process of a command cleanly, wherever it comes."""

import signal
import subprocess
import sys
import time

import pytest

from tests.cli.test_cli import FAST


@pytest.mark.parametrize("seconds", [1, 8])
def test_sigint_ends_the_process_cleanly(tmp_path, seconds):
    """A real process and a real signal, early and late: exit status 130, no traceback, files whole or absent."""
    # What a background shell starts has its interrupts ignored: listen again.
    listening = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); import jaxinvert.cli as c; "
        "print('imported', flush=True); c.run()"
    )
    command = [sys.executable, "-c", listening, *FAST, "--steps", "10000000", "--out", str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()  # a loaded machine may import for longer than that
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)  # an impatient user
        try:
            output, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, output
    assert "Traceback" not in output
    written = (tmp_path / "out" / "report.html").exists()
    assert written != ("nothing was written" in output)


def test_an_interrupt_while_libraries_are_imported_waits_for_them():
    """Within the import of jaxlib's native code it once aborted the process."""
    code = (
        "import os, signal, sys; import jaxinvert.cli as c\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'jaxlib.xla_client': os.kill(os.getpid(), signal.SIGINT)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler); sys.meta_path.insert(0, Finder())\n"
        "status = c.main(['list']); print(status, 'jax.numpy' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert result.stdout == "130 True\n"
    assert result.stderr == "interrupted before anything was reconstructed; nothing was written\n"


def test_an_interrupt_within_a_callback_is_not_lost():
    """A garbage-collection callback cannot raise: Python would print a traceback and go on."""
    code = (
        "import gc, signal, sys, time, jaxinvert.cli; m = sys.modules['jaxinvert.cli.main']\n"
        "def callback(*_): gc.callbacks.clear(); raise KeyboardInterrupt\n"
        "def main():\n    gc.callbacks.append(callback); gc.collect()\n"
        "    for _ in range(3000): time.sleep(0.01)\n    return 0\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler); m.main = main; m.run()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stderr) == (130, "")
