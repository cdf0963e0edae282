"""Starting real processes from a test: torchrun, the command line, any Python program.

They are forked from a process that has imported the trainer (`tests/forkserver.py`), one per session and shared by the
workers of pytest-xdist: real processes over gloo with exit codes, signals and output of their own.  `cold=True` starts
a fresh interpreter instead, for tests of the launcher, of imports or of memory; so does whatever the server cannot
give: an interpreter's option, a variable that is read when a library is imported.
"""

from __future__ import annotations

import fcntl
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import psutil

from tests import timing
from tests.forked_spawn import READ_AT_IMPORT, obstacle

REPOSITORY = Path(__file__).resolve().parents[2]
_before = dict(os.environ)
_kept: list[socket.socket] = []


def python_path() -> str:
    """This copy of the package for other processes, behind what this one was told to look into first: another
    megatron-core (tests/newest_megatron.sh).
    """
    return os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(REPOSITORY)]))


def release() -> str:
    """The release of megatron-core that is to be tested: the installed one, or the one that tests/newest_megatron.sh
    puts before it.
    """
    return os.environ.get("MVG_MEGATRON") or metadata.version("megatron-core")


def environment_of(**changes: str) -> dict[str, str]:
    """The environment of a process: one thread, this copy of the package, no warnings of libraries; not what tests and
    libraries of this process set for themselves (Triton's interpreter, a search path).
    """
    mine = {name: value for name, value in os.environ.items() if not name.startswith(READ_AT_IMPORT)}
    before = {name: value for name, value in _before.items() if name.startswith(READ_AT_IMPORT)}
    return {
        **mine,
        **before,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": python_path(),
        "PYTHONWARNINGS": "ignore",
        **changes,
    }


def _connect() -> socket.socket:
    """A connection to this session's server, which the first one starts."""
    session = os.environ.get("MVG_TESTS_SESSION") or os.environ.get("PYTEST_XDIST_TESTRUNUID") or str(os.getpid())
    address = Path(tempfile.gettempdir()) / f"mvg_tests_{os.getuid()}_{session}"
    log = address.with_suffix(".log")
    connection = socket.socket(socket.AF_UNIX)
    with address.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            connection.connect(str(address))
            return connection
        except OSError:
            address.unlink(missing_ok=True)
        command = [sys.executable, "-m", "tests.forkserver", str(address)]
        with log.open("w") as output:
            server = subprocess.Popen(
                command,
                cwd=REPOSITORY,
                env=environment_of(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        while not address.exists():
            assert server.poll() is None, f"the fork server does not start:\n{log.read_text()}"
            time.sleep(0.02)
        connection.connect(str(address))
    return connection


class Forked:
    """A process forked by the server, with the parts of `subprocess.Popen` that tests use."""

    def __init__(self, command: list[str], env: dict[str, str], cwd: Path) -> None:
        if not _kept:
            # The server ends soon after the last connection.
            _kept.append(_connect())
        self.args, self.returncode = command, None
        self._connection = _connect()
        pipes = [os.pipe() for _ in range(2)]
        text = json.dumps({"argv": command[1:], "cwd": str(cwd), "env": env}).encode()
        socket.send_fds(self._connection, [b"%08d" % len(text)], [write for _, write in pipes])
        self._connection.sendall(text)
        for _, write in pipes:
            os.close(write)
        self.stdout, self.stderr = (os.fdopen(read, encoding="utf-8", errors="replace") for read, _ in pipes)
        self._answers = self._connection.makefile("r", encoding="utf-8")
        line = self._answers.readline()
        assert line, f"the fork server has ended: see {tempfile.gettempdir()}/mvg_tests_*.log"
        self.pid: int = json.loads(line)["pid"]

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, negative for a signal.  Raises subprocess.TimeoutExpired after `timeout` seconds."""
        if self.returncode is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._connection, selectors.EVENT_READ)
                if not selector.select(timeout):
                    raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            answer = json.loads(self._answers.readline())
            self.returncode = answer["code"]
            timing.elsewhere[0] += answer["processor"]
            self._answers.close()
            self._connection.close()
        assert self.returncode is not None
        return self.returncode

    def poll(self) -> int | None:
        """The exit code, or None while the process runs."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Everything that is left of stdout and stderr, once both have ended.  Raises subprocess.TimeoutExpired."""
        limit = None if timeout is None else time.monotonic() + timeout
        read: dict[IO[str], bytes] = {self.stdout: b"", self.stderr: b""}
        with selectors.DefaultSelector() as selector:
            for stream in read:
                selector.register(stream, selectors.EVENT_READ)
            while selector.get_map():
                ready = selector.select(None if limit is None else max(0.0, limit - time.monotonic()))
                if not ready:
                    raise subprocess.TimeoutExpired(self.args, timeout or 0.0, read[self.stdout], read[self.stderr])
                for key, _ in ready:
                    data = os.read(key.fd, 1 << 16)
                    if not data:
                        selector.unregister(key.fileobj)
                    read[key.fileobj] += data  # type: ignore[index]
        self.wait(None if limit is None else max(0.0, limit - time.monotonic()))
        self.stdout.close()
        self.stderr.close()
        output, errors = (data.decode("utf-8", "replace") for data in read.values())
        return output, errors

    def send_signal(self, number: int) -> None:
        """Does nothing when the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


Process = Forked | subprocess.Popen
"""What `start` gives; either way with pid, poll, wait, communicate, send_signal, terminate, kill, returncode, stdout
and stderr (text).
"""


def start(command: list[str], cold: bool = False, cwd: Path = REPOSITORY, **environment: str) -> Process:
    """Start a command; stdout and stderr are pipes."""
    env = environment_of(**environment)
    imported_in = {**_before, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    if not cold:
        reason = obstacle(command, env, imported_in)
        if not reason:
            return Forked(command, env, cwd)
        warnings.warn(f"started afresh, without cold=True: {reason}", stacklevel=2)
    return subprocess.Popen(command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def kill_tree(process: Process) -> None:
    """SIGKILL for a process and all that it started."""
    try:
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    except psutil.NoSuchProcess:
        return
    for one in family:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue


def _decoded(output: bytes | str | None) -> str:
    return output.decode("utf-8", "replace") if isinstance(output, bytes) else output or ""


def run(
    command: list[str], timeout: float = 600, cold: bool = False, **environment: str
) -> subprocess.CompletedProcess[str]:
    """A command in the repository with one thread per process."""
    process = start(command, cold, **environment)
    try:
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired as late:
        holding = "its processes run" if process.poll() is None else "it has ended, something it started has not"
        kill_tree(process)
        process.wait()
        said = "\n".join(text[-6000:] for text in map(_decoded, (late.stdout, late.stderr)))
        raise AssertionError(f"{' '.join(command)}\nnot done after {timeout} seconds ({holding}):\n{said}") from None
    except BaseException:
        kill_tree(process)
        process.wait()
        raise
    assert process.returncode is not None
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def torchrun_command(processes: int, *arguments: str) -> list[str]:
    """`torchrun --nproc_per_node=<processes> <arguments>`; options of torchrun come first."""
    return [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone", *arguments]


def torchrun(
    processes: int, *arguments: str, timeout: float = 600, check: bool = True, cold: bool = False, **environment: str
) -> subprocess.CompletedProcess[str]:
    """`torchrun --nproc_per_node=<processes> <arguments>` over gloo on this machine; fails the test with the output
    when it fails.
    """
    result = run(torchrun_command(processes, *arguments), timeout, cold, **environment)
    if check:
        assert result.returncode == 0, f"{' '.join(arguments)}\n{result.stdout[-3000:]}\n{result.stderr[-6000:]}"
    return result


def cli(
    *arguments: str, timeout: float = 600, cold: bool = False, **environment: str
) -> subprocess.CompletedProcess[str]:
    """`python -m megatron_videogpt <arguments>`."""
    return run([sys.executable, "-m", "megatron_videogpt", *arguments], timeout, cold, **environment)


def children(process: Process) -> list[int]:
    """Process ids of what a process started and what runs still; for torchrun, its ranks."""
    return [child.pid for child in psutil.Process(process.pid).children()]


def interpreter(*arguments: Any) -> list[str]:
    """`python <arguments>`."""
    return [sys.executable, *map(str, arguments)]
