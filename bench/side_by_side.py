"""Two trainings at once on the cores that one would use: how fast each is, by how long a thread spins while
it waits.

    python bench/side_by_side.py --data abstracts.jsonl

Each is train_clm.py on nano with as many threads as there are cores. GOMP_SPINCOUNT: OpenMP's default, none,
and what nanomed.threads sets."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nanomed.evaluation import tables  # noqa: E402
from nanomed.threads import SPIN  # noqa: E402

DEFAULT = 300_000  # libgomp's, for a thread a core


def train(data: str, steps: int, spin: int, out: Path, n: int) -> list[float]:
    """Tokens per second of n runs at once."""
    command = [
        sys.executable,
        str(ROOT / "train_clm.py"),
        "--model",
        "nano",
        "--data",
        data,
        "--limit",
        "300",
        "--context",
        "128",
    ]
    command += ["--max-steps", str(steps), "--val-fraction", "0", "--save-every", "0"]
    env = os.environ | {"GOMP_SPINCOUNT": str(spin)}
    places = [out / f"{spin}-{n}-{k}" for k in range(n)]
    runs = [subprocess.Popen([*command, "--out", str(p)], env=env, stdout=subprocess.DEVNULL) for p in places]
    if any(run.wait() for run in runs):
        sys.exit("a training failed")
    return [json.loads((p / "summary.json").read_text())["tokens_per_s"] for p in places]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", required=True)
    args = p.parse_args()
    rows, result = (
        [
            ["spin", "alone (supervised tokens/s)", "each of two", "share of alone"],
            ["---", "---:", "---:", "---:"],
        ],
        {},
    )
    with tempfile.TemporaryDirectory() as out:
        for spin in (DEFAULT, 0, SPIN):
            (alone,) = train(args.data, 100, spin, Path(out), 1)
            each = min(train(args.data, 15 if spin == DEFAULT else 40, spin, Path(out), 2))
            result[spin] = {"alone": alone, "each_of_two": each}
            rows.append([f"{spin:,}", f"{alone:,.0f}", f"{each:,.0f}", f"{each / alone:.2f}"])
    print(tables.text_table(rows))
    print(json.dumps({"bench": "side_by_side", "result": result}))


if __name__ == "__main__":
    main()
