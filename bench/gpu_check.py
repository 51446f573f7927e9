"""Five minutes on a GPU, for who has one: whether it computes what the CPU does, how fast it trains and
writes.

    make gpu-check            the last line is JSON; nothing is sent anywhere

The parity of nano's loss and gradient in every dtype (bench/parity.py), the tests of tests/test_cuda.py, and
short runs of bench/train.py and bench/decode.py at GPT-2 small's shape. Ends with status 2 where there is no
GPU, 1 where something is wrong."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
TRAIN = ["--context", "1024", "--batch-size", "8", "--rounds", "1", "--repeats", "8"]
RUNS = {
    "train bf16": [
        "bench/train.py",
        "--dtype",
        "bf16",
        *TRAIN,
        "--sides",
        "nanomed full",
        "nanomed-compile full",
        "nanomed lora",
    ],
    "train fp16": ["bench/train.py", "--dtype", "fp16", *TRAIN, "--sides", "nanomed full"],
    "decode bf16": [
        "bench/decode.py",
        "--dtype",
        "bf16",
        "--rounds",
        "1",
        "--sides",
        "nanomed 1",
        "nanomed 8",
    ],
}


def main():
    if not torch.cuda.is_available():
        print("gpu_check.py: this PyTorch sees no CUDA device", file=sys.stderr)
        sys.exit(2)
    result = {
        "bench": "gpu_check",
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }
    result["capability"] = list(torch.cuda.get_device_capability())
    parity = call(["bench/parity.py"])
    tests = call(["-m", "pytest", "-q", "tests/test_cuda.py"])
    result |= {"parity": parity.stdout.splitlines(), "tests": tests.stdout.splitlines()[-1:]}
    wrong = [name for name, done in (("parity", parity), ("tests", tests)) if done.returncode]
    with tempfile.TemporaryDirectory() as directory:
        for name, command in RUNS.items():
            file = Path(directory) / "line.json"
            file.unlink(missing_ok=True)
            done = call([*command, "--device", "cuda", "--json", str(file)])
            if done.returncode:
                wrong.append(name)
                result[name] = done.stderr.splitlines()[-3:]
            else:
                line = json.loads(file.read_text())
                result[name] = {"ours": line["ours"], "ceiling": line["ceiling"]}
    result["wrong"] = wrong
    print(json.dumps(result))
    sys.exit(1 if wrong else 0)


def call(command: list[str]):
    print(" ".join(command), file=sys.stderr, flush=True)
    env = os.environ | {"NANOMED_TEST_CUDA": "1"}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=ROOT, env=env)
    print(done.stdout, done.stderr[-2000:] if done.returncode else "", file=sys.stderr, flush=True)
    return done


if __name__ == "__main__":
    main()
