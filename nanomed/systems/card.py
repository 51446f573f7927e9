"""The card of a trained model, README.md in its directory, as the Hub shows it: what it is, of what, how, and
how well it does."""

import json
from pathlib import Path

from nanomed.files import read_object
from nanomed.systems.figures import between, look_up, number, stand_in_note
from nanomed.systems.recipe import PHASES, Recipe

LOAD = {
    "model": 'AutoModelForCausalLM.from_pretrained("{path}")',
    "adapter": 'PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), "{path}")',
    "classify": 'AutoModelForSequenceClassification.from_pretrained("{path}")',
}
# What decides the weights, in the order in which a reader asks for it.
SETTINGS = """epochs max_steps batch_size grad_accum context lr warmup_ratio weight_decay grad_clip lora_r lora_alpha lora_dropout
    lora_targets lora_scale merge template near_duplicates special_tokens l2_sp ewc pull_on dtype seed""".split()


def model_card(recipe: Recipe, results: dict, phase: str, directory: Path, run: dict) -> str:
    """The card of the model that a phase left, from its run.json (`run`) and what was measured
    (`results`)."""
    s, name, summary = run["settings"], PHASES[phase], results["phases"][phase]
    adapter = (directory / "adapter_config.json").exists()
    front = {
        "base_model": recipe.model,
        "library_name": "peft" if adapter else "transformers",
        "language": "en",
    }
    front |= {
        "pipeline_tag": "text-classification" if phase == "classify" else "text-generation",
        "tags": ["biology", "medical", "nanomed"],
    }
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in front.items()), "---", ""]
    hub = [
        source.split(":")[1]
        for data in recipe.data.values()
        for source in data.source
        if source.startswith("hub:")
    ]
    lines[-2:-2] = [f"datasets: {json.dumps(list(dict.fromkeys(hub)))}"] if hub else []
    note = stand_in_note(results)
    lines += [
        f"# {recipe.title}: {name}",
        "",
        f"Made by nanomed's recipe `{recipe.name}`, phase `{phase}`." + (f" {note}" if note else ""),
        "",
    ]
    lines += [
        "## Base and data",
        "",
        f"- Trained from: `{s['model']}` (SHA-256 of its weights and configuration: `{run['model']}`)",
    ]
    lines += [f"- {kind}: SHA-256 `{sha}`" for kind, sha in run["data"].items() if kind != "template"]
    for side, data in recipe.data.items():
        lines.append(f"- `{side}` comes from {', '.join(f'`{source}`' for source in data.source)}")
    counts = [
        "documents",
        "examples",
        "texts",
        "duplicates_removed",
        "near_duplicates_removed",
        "truncated",
        "steps",
    ]
    counts += [] if phase == "classify" else ["tokens"]
    lines.append(
        "- "
        + ", ".join(
            f"{key.replace('_', ' ')}: {summary[key]:,}"
            for key in counts
            if isinstance(summary.get(key), int)
        )
    )
    lines += ["", "## Settings", "", "| | |", "|---|---|"]
    beside_the_point = {"epochs"} if s["max_steps"] else set()
    beside_the_point |= set() if s["lora_r"] else {"lora_targets"}
    beside_the_point |= set() if s["lora_r"] and s.get("lora_scale") == "rslora" else {"lora_scale"}
    off = (None, "", 0, 0.0, False)
    lines += [
        f"| {key} | {s[key]} |"
        for key in SETTINGS
        if key == "seed" or (s.get(key) not in off and key not in beside_the_point)
    ]
    lines += [
        "",
        "## Figures",
        "",
        *_figures(recipe, results, phase, name),
        "",
        "## Loading it",
        "",
        "```python",
        *_load(phase, adapter, directory),
    ]
    lines += ["```", "", "## What it is not", ""]
    said = (
        "It completes text. It has learnt wording, and facts only as far as its training texts repeat them."
    )
    lines.append(
        f"It tells {' from '.join(summary['labels'])} texts, of the kind that it was trained on."
        if phase == "classify"
        else said
    )
    lines.append("It is no source of medical advice.")
    machine = run.get("machine", {})
    versions = ", ".join(f"{k} {v}" for k, v in run["versions"].items())
    lines += [
        "",
        f"Trained on {machine.get('cuda' if s['device'] == 'cuda' else 'cpu')}, {s['dtype']}; {versions}.",
        "",
    ]
    return "\n".join(lines)


def _load(phase: str, adapter: bool, directory: Path) -> list[str]:
    kind = "classify" if phase == "classify" else "adapter" if adapter else "model"
    classes = {
        "classify": "AutoModelForSequenceClassification",
        "adapter": "AutoModelForCausalLM",
        "model": "AutoModelForCausalLM",
    }
    lines = ["from peft import PeftModel"] if adapter else []
    base = read_object(directory / "adapter_config.json")["base_model_name_or_path"] if adapter else None
    call = LOAD[kind].format(path=directory.name, base=base)
    return [
        *lines,
        f"from transformers import AutoTokenizer, {classes[kind]}",
        "",
        f"model = {call}",
        f'tokenizer = AutoTokenizer.from_pretrained("{directory.name}")',
    ]


def _figures(recipe: Recipe, results: dict, phase: str, name: str) -> list[str]:
    """Held-out figures with 95 % intervals, before and after; of a classifier, beside its baselines."""
    if phase == "classify":
        lines = ["| held out | accuracy [95 %] | macro-F1 [95 %] |", "|---|---:|---:|"]
        for who, r in results["classifier"]["beside"].items():
            lines.append(
                f"| {who} | "
                + " | ".join(_cell(r[key], r[key + "_ci95"]) for key in ("accuracy", "macro_f1"))
                + " |"
            )
        return lines
    lines = ["| held out | before [95 %] | after [95 %] | |", "|---|---:|---:|---|"]
    paths = {
        f"perplexity of {data}": f"{data}.ppl"
        for data in results["stages"][name]
        if data not in ("answers", "choices")
    }
    answers = ("perplexity", "answer_ppl"), ("BLEU, 0 to 100", "bleu"), ("ROUGE-L, 0 to 1", "rouge_l")
    paths |= {f"answers: {title}": f"answers.{key}" for title, key in answers}
    paths |= {"yes/no/maybe: accuracy": "choices.accuracy", "yes/no/maybe: macro-F1": "choices.macro_f1"}
    for title, path in paths.items():
        (before, a), (after, b) = look_up(results, f"base.{path}"), look_up(results, f"{name}.{path}")
        if after is not None and before is not None:
            overlap = (
                "intervals overlap"
                if a and b and a[0] <= b[1] and b[0] <= a[1]
                else "intervals apart"
                if a and b
                else ""
            )
            lines.append(f"| {title} | {_cell(before, a)} | {_cell(after, b)} | {overlap} |")
    if "answers" in results["stages"][name]:
        lines += [
            "",
            f"Answers: greedy, to {results['stages'][name]['answers']['questions']:,} held-out questions.",
        ]
    shared = results["stages"][name][recipe.measured].get("overlap")
    if shared:
        runs = f"{shared['documents']:,} share {shared['n']} words in a row with a training text"
        lines += ["", f"Of the {shared['of']:,} held-out texts {runs}."]
    return lines


def _cell(value: float, interval: list[float] | None) -> str:
    return number(value) + between(interval)
