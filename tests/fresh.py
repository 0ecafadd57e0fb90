"""Fresh Python processes in 0.1 s, forked from one that has imported torch but not this package.

``python("-m", "modular_gpt.cli.train", ...)`` replaces ``subprocess.run`` of this Python and saves the two seconds of
importing the libraries. Run as a program with the path of a socket and further arguments, this file is that Python for
a shell (``command``).
"""

import contextlib
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from functools import cache
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

# Imports of every command, except modules that a test requires not to be imported (test_help.py).
LIBRARIES = (
    *("torch", "torch.distributed.checkpoint", "torch.distributed.fsdp", "torch.utils.flop_counter"),
    *("numpy", "safetensors.torch", "tqdm", "statistics", "yaml", "omegaconf", "hydra", "hydra.compose"),
    *("hydra._internal.hydra", "hydra.core.override_parser.overrides_parser", "hydra.core.plugins"),
    *("pytest", "hypothesis", "torch._dynamo"),  # of the laws, run in a copy of the checkout or on a plugin
)
PIDS = "FRESH_PIDS"  # names a folder, where each process writes its id into a file named after its rank
TRAINING = (
    *("modular_gpt.training", "modular_gpt.generation", "tests.training.small", "tests.distributed.cases"),
    *("torch._dynamo", "matplotlib.figure", "matplotlib.backends.backend_agg"),
)


def python(
    *arguments: str, cwd: Path | str | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run Python with arguments (``-c CODE ...`` or ``-m MODULE ...``) and return the completed process."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, open(os.devnull) as nothing:
        files = [nothing.fileno(), out.fileno(), err.fileno()]
        request = [arguments, str(cwd or os.getcwd()), dict(os.environ if env is None else env)]
        code = _ask(_server(), request, files)
        streams = []
        for file in (out, err):
            file.seek(0)
            streams.append(file.read().decode())
    return subprocess.CompletedProcess(list(arguments), code, *streams)


def processes() -> ForkServerContext:
    """Multiprocessing context that forks from a process that has imported this package and the training libraries."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(TRAINING))
    return context


def command() -> list[str]:
    """Command line of a program that acts as this Python; its arguments are appended."""
    return [sys.executable, "-I", "-S", __file__, _server()]


@cache
def _server() -> str:
    """Start the process that others are forked from; returns the path of its socket. It ends with this process."""
    path = os.path.join(tempfile.mkdtemp(prefix="fresh-"), "socket")
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.Popen([sys.executable, __file__, path], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline(), "the process that others are forked from did not start"
    _started.append(process)
    return path


_started: list[Any] = []  # its standard input stays open until this process ends


def _ask(path: str, request: list[Any], files: list[int], forward: bool = False) -> int:
    """Run a process and return its exit code; ``forward``: forward signals of this process to it."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        line = json.dumps(request).encode() + b"\n"
        sent = socket.send_fds(connection, [line], files)
        connection.sendall(line[sent:])
        answers = connection.makefile()
        process = int(answers.readline())
        for number in (signal.SIGINT, signal.SIGTERM) if forward else ():
            signal.signal(number, lambda number, _: os.kill(process, number))
        return int(answers.readline())


def _serve(path: str) -> None:
    import gc
    import importlib
    import select

    for name in LIBRARIES:
        importlib.import_module(name)
    gc.freeze()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen(64)
        print("ready", flush=True)
        while sys.stdin not in select.select([server, sys.stdin], [], [])[0]:
            connection, _ = server.accept()
            with connection:
                if os.fork() == 0:
                    server.close()
                    _answer(connection)
            while _reaped():
                pass
    os.remove(path)
    os.rmdir(os.path.dirname(path))


def _reaped() -> bool:
    try:
        return os.waitpid(-1, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return False


def _answer(connection: socket.socket) -> None:
    """Start the requested process and send its exit code."""
    request, files, _, _ = socket.recv_fds(connection, 2**16, 3)
    while not request.endswith(b"\n"):
        request += connection.recv(2**16)
    process = os.fork()
    if process == 0:
        connection.close()
        _become(files, *json.loads(request))
    for file in files:
        os.close(file)
    connection.sendall(f"{process}\n".encode())
    threading.Thread(target=_end_with, args=(connection, process), daemon=True).start()
    _, status = os.waitpid(process, 0)
    with contextlib.suppress(OSError):
        connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def _end_with(connection: socket.socket, process: int) -> None:
    """Kill a process as soon as the requesting one has ended."""
    connection.recv(1)
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def _become(files: list[int], arguments: list[str], cwd: str, env: dict[str, str]) -> None:
    """Act as Python with the given arguments in this process, and exit."""
    import atexit
    import runpy
    import traceback
    from types import ModuleType

    for number, file in enumerate(files):
        os.dup2(file, number)
    os.closerange(3, max(files) + 1)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    if PIDS in env:
        Path(env[PIDS], env.get("RANK", "0")).write_text(str(os.getpid()))
    sys.stdin, sys.stdout = os.fdopen(0), os.fdopen(1, "w")
    sys.stderr = os.fdopen(2, "w", buffering=1)
    paths = [cwd, *filter(None, env.get("PYTHONPATH", "").split(os.pathsep))]
    sys.path[:] = [*paths, *sys.path[1:]]
    flag, code, *_ = arguments
    sys.argv = arguments[:1] + arguments[2:]
    ended: Any = 0
    try:
        if flag == "-m":
            runpy.run_module(code, run_name="__main__", alter_sys=True)
        else:
            assert flag == "-c", flag
            sys.modules["__main__"] = main = ModuleType("__main__")
            exec(compile(code, "<string>", "exec"), main.__dict__)
    except SystemExit as end:
        ended = end.code
    except BaseException:
        traceback.print_exc()
        ended = 1
    if ended is not None and not isinstance(ended, int):
        print(ended, file=sys.stderr)
        ended = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(ended or 0)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        _serve(sys.argv[1])
    else:
        ended = _ask(sys.argv[1], [sys.argv[2:], os.getcwd(), dict(os.environ)], [0, 1, 2], forward=True)
        if ended < 0:  # ended by a signal: end by the same signal
            if -ended != signal.SIGKILL:
                signal.signal(-ended, signal.SIG_DFL)
            os.kill(os.getpid(), -ended)
        sys.exit(ended)
