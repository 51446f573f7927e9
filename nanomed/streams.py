"""Standard input, output and error, however the program was started and whoever still reads what it
prints."""

import errno
import os
import re
import sys

# All control characters but line ends and tabs, and but for the green of --show and its end.
CONTROLS = re.compile(r"\x1b(?!\[(?:32|0)m)|[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f]")
# The same, but for what bars on standard error move the cursor with: to the line's beginning, and a line up.
BUT_BARS = re.compile(r"\x1b(?!\[A)|[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f]")


class Stream:
    """Standard output or error, that outlives its reader: after `| head` has seen enough, what is written
    goes nowhere, and the work goes on. To a terminal it gives no control characters but line ends and tabs:
    what a model writes, or a file holds, could otherwise move its cursor, change its title or type into it.
    """

    def __init__(self, stream, results: bool):
        self.stream = stream
        self.controls = stream.isatty() and (CONTROLS if results else BUT_BARS)
        # A reader or a terminal that is gone; and a full disk, if it holds only what accompanies the work.
        self.bearable = (errno.EPIPE, errno.EIO) if results else (errno.EPIPE, errno.EIO, errno.ENOSPC)

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        text = self.controls.sub("\N{REPLACEMENT CHARACTER}", text) if self.controls else text
        return self._patiently(self.stream.write, text)

    def flush(self):
        self._patiently(self.stream.flush)

    def _patiently(self, call, *args):
        try:
            return call(*args)
        except OSError as e:
            nowhere = os.open(os.devnull, os.O_WRONLY)  # where the rest goes, what is buffered too
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)
            if e.errno not in self.bearable:
                raise OSError(e.errno, e.strerror, "standard output") from e
            return call(*args)


def open_streams() -> None:
    """Make standard input, output and error what the rest may rely on, however the program was started: a
    closed one reads or writes nothing, a reader may go away, a character that the terminal's encoding has not
    got is written as \\xe8, and a line that is printed is seen at once."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (for as long as the process lives)
        elif mode == "w" and stream is getattr(sys, f"__{name}__"):
            stream.reconfigure(errors="backslashreplace", line_buffering=True)
            setattr(sys, name, Stream(stream, results=name == "stdout"))


def note(line: str) -> None:
    """What the user should know, beside the results."""
    print(f"note: {line}", file=sys.stderr)


def in_notebook() -> bool:
    """Whether this process computes a notebook's cells."""
    return "ipykernel" in sys.modules


def progress_bar(iterable=None, **how):
    """tqdm's bar, on a terminal or in a notebook; elsewhere there is none, unless `how` says otherwise. It
    disappears when it is done."""
    if in_notebook():  # whose standard error is no terminal
        from tqdm.auto import tqdm

        return tqdm(iterable, **{"leave": False, "delay": 1} | how)  # a short one would only leave its traces
    from tqdm import tqdm

    return tqdm(iterable, **{"leave": False, "disable": None} | how)
