"""Commands of the project's scripts, several at once, each done once: what is there already is not done
again; and what an experiment leaves in its folder."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent


def run_all(jobs: dict[Path, list[list]], at_once: int) -> None:
    """jobs: {the file that tells that a job is done: its commands, one after the other}. A command is a
    script of the project, or `-m MODULE`, and its arguments; it writes into FILE.log. Stops with the log's
    last lines where a command fails."""
    todo = {done: commands for done, commands in jobs.items() if not done.exists()}
    threads = max(1, (os.cpu_count() or 1) // at_once)
    env = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }

    def work(item):
        done, commands = item
        done.parent.mkdir(parents=True, exist_ok=True)
        log = done.with_suffix(".log")
        with open(log, "w") as f:
            for command in commands:
                f.write(" ".join(map(str, command)) + "\n")
                f.flush()
                if subprocess.run(
                    [sys.executable, *map(str, command)], cwd=ROOT, env=env, stdout=f, stderr=f
                ).returncode:
                    return log
        return None

    with ThreadPoolExecutor(at_once) as pool:
        failed = [
            log
            for log in tqdm(pool.map(work, todo.items()), total=len(todo), desc="runs", disable=None)
            if log
        ]
    if failed:
        sys.exit(
            f"{len(failed)} of {len(todo)} runs failed; {failed[0]} ends:\n"
            + "".join(failed[0].open().readlines()[-5:])
        )


def size_of(args) -> list:
    """Flags of a training: how many updates of which size, and no part of the data kept for validation."""
    size = {"max-steps": args.updates, "context": args.context, "batch-size": args.batch_size}
    return [word for name, value in (size | {"val-fraction": 0}).items() for word in (f"--{name}", value)]


def without_weights(directory: Path) -> list:
    """A command for run_all: remove the weights in a directory, which have been measured."""
    return [
        "-c",
        f"import pathlib\nfor f in pathlib.Path({str(directory)!r}).glob('*model.safetensors'): f.unlink()",
    ]


def leave(out: Path, name: str, found: list[dict], table: str, draw) -> None:
    """NAME.json, NAME.md and, by draw(found, path), NAME.png in the folder `out`; prints the table."""
    (out / f"{name}.json").write_text(json.dumps(found, indent=1))
    (out / f"{name}.md").write_text(table + "\n")
    draw(found, out / f"{name}.png")
    print(table)
    print(f"results in {out}: {name}.json, {name}.md, {name}.png")
