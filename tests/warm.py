"""A start of Python that costs no seconds: a process that has imported PyTorch and its like forks itself for
each command.

    python tests/warm.py SOCKET                      is that process;
    python -S tests/warm.py SOCKET train_clm.py ...  does what `python train_clm.py ...` does (-m and -c too), with its own
                                                     directory, environment, standard streams, signals and exit status.

Nothing that reads the environment at its import (huggingface_hub, datasets, nanomed) is imported beforehand,
so a command finds them as new as it would in a process of its own."""

import contextlib
import gc
import json
import os
import select
import signal
import socket
import sys

HEAVY = """torch._dynamo sklearn.linear_model sklearn.feature_extraction.text sklearn.metrics matplotlib.pyplot
    matplotlib.backends.backend_agg matplotlib.backends.backend_svg pandas tiktoken safetensors.torch""".split()


def serve(path: str) -> None:
    import importlib

    for name in HEAVY:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # else each fork's collector would touch, and so copy, all of it: a second each
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that answer
    while server in select.select([server, sys.stdin], [], [])[0]:  # until whoever started it is gone
        connection, _ = server.accept()
        if not os.fork():
            server.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return answer(connection)
        connection.close()


def answer(connection) -> None:
    """One command, which may ask for others; it is killed if whoever asked for it is."""
    request, streams, *_ = socket.recv_fds(connection, 2**20, 3)
    pid = os.fork()
    if not pid:
        connection.close()
        return become(json.loads(request), streams)
    for fd in streams:
        os.close(fd)
    connection.sendall(b"%d\n" % pid)
    if connection in select.select([connection, os.pidfd_open(pid)], [], [])[0]:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(BrokenPipeError):
        connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
    os._exit(0)


def become(request: dict, streams: list[int]) -> None:
    """In the fork: be `python ARGUMENTS`."""
    import random
    import runpy

    for fd, stream in enumerate(streams):
        os.dup2(stream, fd)
        os.close(stream)
    # New objects: those of the process that forked remember whether its own streams were files or pipes.
    sys.stdin, sys.stdout, sys.stderr = (
        os.fdopen(0, closefd=False),
        os.fdopen(1, "w", closefd=False),
        os.fdopen(2, "w", buffering=1, closefd=False, errors="backslashreplace"),
    )
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environment"])
    random.seed()
    first, *rest = request["arguments"]
    if first == "-c":
        sys.argv, sys.path[0] = ["-c", *rest[1:]], ""
        exec(rest[0], {"__name__": "__main__"})
    elif first == "-m":
        sys.argv, sys.path[0] = rest, request["directory"]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = [first, *rest], os.path.dirname(os.path.abspath(first))
        runpy.run_path(first, run_name="__main__")


def ask(path: str, arguments: list[str]) -> int:
    """Have it done; the exit status."""
    request = {"arguments": arguments, "directory": os.getcwd(), "environment": dict(os.environ)}
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        socket.send_fds(connection, [json.dumps(request).encode()], [0, 1, 2])
        answers = connection.makefile()
        pid = int(answers.readline())
        for sig in (signal.SIGINT, signal.SIGTERM):
            signal.signal(sig, lambda signum, frame: os.kill(pid, signum))
        return int(answers.readline())


if __name__ == "__main__":
    if len(sys.argv) == 2:
        serve(sys.argv[1])
    else:
        status = ask(sys.argv[1], sys.argv[2:])
        if status < 0:  # as the command died, so does what stands for it
            if status != -signal.SIGKILL:
                signal.signal(-status, signal.SIG_DFL)
            os.kill(os.getpid(), -status)
        os._exit(status)
