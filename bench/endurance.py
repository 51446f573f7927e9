"""An hour of small updates, with validations, samples and saves all the while: do memory, open files or
threads grow?

    python bench/endurance.py --phase adapt --seconds 3600       all weights of nano; --phase instruct: LoRA,
                                                                 packed pairs

The run is a process of its own, watched from outside (Linux's /proc) every few seconds, and ended by SIGTERM.
What grows is told by what was held at six times, and by a straight line through all that was seen after the
first tenth. The last line is JSON."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import sides

SMALL = (
    "--model nano --batch-size 2 --context 64 --val-fraction 0.1 --keep best --lr 1e-5 --dtype fp32"
    " --no-compile".split()
)
OFTEN = {"--log-every": 10, "--eval-every": 200, "--save-every": 100}
PHASES = {
    "adapt": ["train_clm.py", "--text-field", "texts", "--sample-prompt", "The patient was treated with"],
    "instruct": [
        "train_sft.py",
        "--lora-r",
        "8",
        "--instruction-field",
        "title",
        "--response-field",
        "authors",
    ],
}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--phase", default="adapt", choices=PHASES)
    p.add_argument("--seconds", type=int, default=3600, help="(default: 3600)")
    p.add_argument(
        "--every", type=float, default=10, help="seconds between two looks at the process (default: 10)"
    )
    p.add_argument("--json", metavar="FILE", help="write the last line to this file too")
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "run"
        script, *flags = PHASES[args.phase]
        flags += [
            *SMALL,
            "--data",
            str(sides.ROOT / "nanomed" / "demo" / "abstracts.jsonl"),
            "--out",
            str(out),
        ]
        command = [
            sys.executable,
            str(sides.ROOT / script),
            *flags,
            *(str(x) for pair in OFTEN.items() for x in pair),
        ]
        seen, log = watch([*command, "--max-steps", "100000000"], args, Path(directory) / "log")
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        saved = next((out / "state").glob("step-*"))
        updates = int(saved.stem[5:])
        if (
            updates < lines[-1]["step"] or len(list((out / "state").iterdir())) > 2
        ):  # the newest state and the best weights
            sys.exit(
                f"{sorted((out / 'state').iterdir())}: not what a run leaves that was stopped; its log:"
                f" {log[-500:]}"
            )
    report(seen, updates, lines, args)


def watch(command: list[str], args, log: Path) -> tuple[list[dict], str]:
    """What the process held, every few seconds from its start on, until it is told to stop; and what it
    printed."""
    with open(log, "w") as f, subprocess.Popen(command, stdout=f, stderr=f) as process:
        began, seen = time.monotonic(), []
        try:
            while time.monotonic() - began < args.seconds:
                time.sleep(args.every)
                if process.poll() is not None:
                    break
                seen.append({"seconds": time.monotonic() - began, **held(process.pid)})
        finally:
            process.terminate()
        status = process.wait(60)
    text = log.read_text()
    if status != 143:  # as after SIGTERM
        sys.exit(f"the run ended with {status}: {text[-1000:]}")
    return seen, text


def held(pid: int) -> dict:
    lines = (line.split(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    status = {key: value.split()[0] for key, value in lines if value.split()}
    return {
        "memory (MB)": int(status["RssAnon"]) / 1e3,
        "open files": len(os.listdir(f"/proc/{pid}/fd")),
        "threads": int(status["Threads"]),
    }


def report(seen: list[dict], updates: int, lines: list[dict], args) -> None:
    later = [s for s in seen if s["seconds"] > args.seconds / 10]
    hours = np.array([s["seconds"] for s in later]) / 3600
    validations = sum("val_loss" in line for line in lines)
    times = [later[round(k * (len(later) - 1) / 5)] for k in range(6)]
    rows = [
        ["", *(f"{s['seconds'] / 60:.0f} min" for s in times), "most", "growth an hour"],
        ["---", *["---:"] * 8],
    ]
    found = {}
    for what in ("memory (MB)", "open files", "threads"):
        values = [s[what] for s in later]
        found[what] = {
            "at": [s[what] for s in times],
            "most": max(values),
            "growth_an_hour": float(np.polyfit(hours, values, 1)[0]),
        }
        rows.append(
            [
                what,
                *(f"{x:,.0f}" for x in [*found[what]["at"], max(values)]),
                f"{found[what]['growth_an_hour']:+,.1f}",
            ]
        )
    print(sides.tables.text_table(rows, width=150))
    print(
        f"{updates:,} updates, {validations:,} validations, {updates // OFTEN['--save-every']:,} states saved"
    )
    line = {
        "bench": "endurance",
        "phase": args.phase,
        "seconds": args.seconds,
        "updates": updates,
        "validations": validations,
    }
    text = json.dumps(line | {"held": found, "looks": len(seen), "machine": sides.machine("cpu")})
    if args.json:
        Path(args.json).write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
