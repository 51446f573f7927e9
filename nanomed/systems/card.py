"""The card of a trained model, README.md in its directory, as the Hub shows it: what it is, of what, how, and
how well it does. card.md is the template. Of files and local models it has the names, and no paths."""

import json
import re
from pathlib import Path

from nanomed import hub
from nanomed.files import read_object
from nanomed.systems.figures import cell, look_up, stand_in_note
from nanomed.systems.recipe import MODEL_OF, NEEDED, Recipe
from nanomed.text.templates import of_model

# What decides the weights, in the order in which a reader asks for it.
SETTINGS = """epochs max_steps batch_size grad_accum context lr warmup_ratio weight_decay grad_clip
    lora_r lora_alpha lora_dropout lora_targets lora_scale merge template near_duplicates special_tokens
    l2_sp ewc pull_on dtype seed""".split()
COUNTS = "documents examples texts duplicates_removed near_duplicates_removed truncated steps".split()


def model_card(recipe: Recipe, results: dict, phase: str, directory: Path) -> str:
    """The card of the model that a phase left in a directory, from its run.json and what was measured
    (`results`)."""
    import jinja2

    run, summary = read_object(directory / "run.json"), results["phases"][phase]
    settings, front = run["settings"], _of_base(recipe)
    start, adapter = settings["model"], (directory / "adapter_config.json").exists()
    counted = {k: summary[k] for k in COUNTS if isinstance(summary.get(k), int)}
    if phase != "classify":
        counted["supervised tokens"] = summary["tokens"]
    stands_in = {name: _names(files) for name, files in results["stand_in"].items()}
    about = {
        "recipe": recipe,
        "phase": phase,
        "name": MODEL_OF[phase],
        "path": directory.name,
        "run": run,
        "adapter": adapter,
        "front": front,
        "base": Path(recipe.model).name,
        "start": start if start in front.values() else Path(start).name,
        "template": of_model(directory) if phase == "instruct" else None,
        "datasets": _datasets(recipe, phase),
        "counts": [f"{k.replace('_', ' ')}: {n:,}" for k, n in counted.items()],
        "stored": "float32" if adapter else read_object(directory / "config.json").get("dtype", "float32"),
        "note": stand_in_note(results | {"stand_in": stands_in}),
        "settings": _settings(settings),
        "labels": summary.get("labels"),
        "versions": [f"{k} {v}" for k, v in run["versions"].items()],
        "machine": run.get("machine", {}).get("cuda" if settings["device"] == "cuda" else "cpu"),
    }
    about |= _of_classifier(results) if phase == "classify" else _of_model(recipe, results, MODEL_OF[phase])
    env = jinja2.Environment(trim_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined)
    env.filters |= {"json": json.dumps, "names": _names}
    return env.from_string((Path(__file__).parent / "card.md").read_text(encoding="utf-8")).render(about)


def _names(sources: str) -> str:
    """`data: A + B`, say, in which local files have their names alone."""
    kind, colon, files = sources.rpartition(": ")
    names = (s if s.startswith("hub:") else Path(s).name for s in files.split(" + "))
    return kind + colon + " + ".join(names)


def _of_base(recipe: Recipe) -> dict[str, str]:
    """What the Hub's front matter can say of the base: where it is on the Hub (base_model), and its licence,
    from the recipe, or of a local model from its own card; what is not known is left out."""
    source = hub.find(recipe.model, weights=False)
    if not Path(source.name).exists():
        known = recipe.license and "model" not in recipe.instead
        return {"base_model": source.name} | ({"license": recipe.license} if known else {})
    card = source.directory / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    front = text.split("\n---\n")[0] if text.startswith("---\n") else ""
    return dict(re.findall(r"(?m)^(base_model|license): *([\w./-]+)$", front))


def _datasets(recipe: Recipe, phase: str) -> list[str]:
    """On the Hub, that the model read in this phase and, if it was adapted before, then."""
    read = {name for p in {"adapt", phase} & recipe.phases.keys() for name in NEEDED[p]}
    read |= {name for name, data in recipe.data.items() if data.ratio and phase == "instruct"}
    sources = [s for name, data in recipe.data.items() if name in read for s in data.source]
    return list(dict.fromkeys(s.split(":")[1] for s in sources if s.startswith("hub:")))


def _settings(s: dict) -> dict:
    """Those that are on, and to the point."""
    s = s | {"template": Path(s.get("template") or "").name}
    beside = {"epochs"} if s["max_steps"] else set()
    beside |= set() if s["lora_r"] else {"lora_targets"}
    beside |= set() if s["lora_r"] and s.get("lora_scale") == "rslora" else {"lora_scale"}
    off = (None, "", 0, 0.0, False)
    return {k: s[k] for k in SETTINGS if k == "seed" or (s.get(k) not in off and k not in beside)}


def _of_classifier(results: dict) -> dict:
    """Held-out figures with 95 % intervals, beside its baselines."""
    figures = []
    for who, r in results["classifier"]["beside"].items():
        figures.append([who, *(cell(r[key], r[key + "_ci95"]) for key in ("accuracy", "macro_f1"))])
    return {"figures": figures, "answers": None, "shared": None}


def _of_model(recipe: Recipe, results: dict, name: str) -> dict:
    """Held-out figures with 95 % intervals, before and after."""
    after, figures = results["stages"][name], []
    paths = {f"perplexity of {d}": f"{d}.ppl" for d in after if d not in ("answers", "choices")}
    of_answers = {"perplexity": "answer_ppl", "BLEU, 0 to 100": "bleu", "ROUGE-L, 0 to 1": "rouge_l"}
    paths |= {f"answers: {title}": f"answers.{key}" for title, key in of_answers.items()}
    paths |= {"yes/no/maybe: accuracy": "choices.accuracy", "yes/no/maybe: macro-F1": "choices.macro_f1"}
    for title, path in paths.items():
        (x, a), (y, b) = (look_up(results, f"{stage}.{path}") for stage in ("base", name))
        if x is not None and y is not None:
            meet = a and b and a[0] <= b[1] and b[0] <= a[1]
            overlap = "intervals overlap" if meet else "intervals apart" if a and b else ""
            figures.append([title, cell(x, a), cell(y, b), overlap])
    answers, shared = after.get("answers"), after[recipe.measured].get("overlap")
    return {"figures": figures, "answers": answers and answers["questions"], "shared": shared}
