"""Standard input, output and error, however the program was started and whoever still reads what it prints."""

import os
import sys


class Stream:
    """Standard output or error, that outlives its reader: after `| head` has seen enough, what is written goes nowhere, and
    the work goes on."""

    def __init__(self, stream):
        self.stream = stream

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        return self._patiently(self.stream.write, text)

    def flush(self):
        self._patiently(self.stream.flush)

    def _patiently(self, call, *args):
        try:
            return call(*args)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)
            return call(*args)


def open_streams() -> None:
    """Make standard input, output and error what the rest may rely on, however the program was started: a closed one reads
    or writes nothing, a reader may go away, a character that the terminal's encoding has not got is written as \\xe8, and a
    line that is printed is seen at once."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (for as long as the process lives)
        elif mode == "w" and stream is getattr(sys, f"__{name}__"):
            stream.reconfigure(errors="backslashreplace", line_buffering=True)
            setattr(sys, name, Stream(stream))
