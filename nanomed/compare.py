"""Several models under one protocol, on one page: the perplexity of each on the same documents, what each writes after the
same prompts, the curves of their training, and the classifier's confusion matrix. report.html is one file that needs nothing
else; report.json holds its figures."""

import base64
import time
from importlib.metadata import version
from pathlib import Path

from nanomed import hub, measure, report
from nanomed.errors import UserError
from nanomed.files import read_json, write_json, write_text
from nanomed.generate import Sampling
from nanomed.metrics import need

# The topics whose samples the gpt2-lora-medical-terms recipe shows, and a question beside them.
PROMPTS = ["Paracetamol poisoning", "Congenital adrenal hyperplasia", "Anthrax", "Cachexia", "Botulism",
           "What is Cox proportional hazards regression?"]  # fmt: skip


def make_page(args, prompts: list[str], template=None) -> Path:
    """`eval.py compare`: measure, then write report.html and report.json into args.out. Raises UserError for whatever cannot
    be measured; for a model that is not there before anything is."""
    need("jinja2"), need("matplotlib")
    columns = dict(_named(d) for d in args.data)
    if len(columns) < len(args.data):
        raise UserError("--data: two columns of the same name; NAME=D names them")
    names = short_names(args.models)
    classifier = read_classifier(args.classifier) if args.classifier else None
    content = {
        "title": " → ".join(names),
        "models": [],
        "columns": list(columns),
        "prompts": prompts,
        "template": args.template,
        "classifier": classifier,
        "curves": [],
        "tables": [],
    }
    for model in args.models:  # a misspelt one should not wait until the others have been measured
        hub.find(model)
    for name, model in zip(names, args.models, strict=True):
        o = measure.open_model(model, args.device, args.dtype)
        print(f"{o}; {len(columns)} corpora, {len(prompts)} prompts")
        entry = {"name": name, "model": model, "ppl": {}}
        corpora = {}  # all are read, and so found fit to be, before anything is measured
        for column, file in columns.items():
            corpora[column] = measure.encode(o, [file], args.text_field, args.limit, args.skip_bad_rows)
        for column, corpus in corpora.items():
            entry["ppl"][column] = measure.measure_ppl(o, corpus, args.context, args.stride, args.batch_size, args.seed)
        entry["samples"] = samples(o, prompts, template, args.max_new_tokens, args.seed)
        content["models"].append(entry)
        content["dtype"], content["device"] = o.dtype, str(o.device)
        content["curves"] += curves_of(name, o.directory)
    if args.classifier and Path(args.classifier).is_dir():
        content["curves"] += curves_of(Path(args.classifier).name, Path(args.classifier), "texts")
    return write_page(content, Path(args.out))


def samples(o: measure.Opened, prompts: list[str], template, max_new_tokens: int, seed: int, penalty=1.2) -> list[dict]:
    """What a model writes after each prompt: greedily, with a penalty on repetition, which small models need."""
    texts = [template.ask(p) if template else p for p in prompts]
    for prompt, text in zip(prompts, texts, strict=True):
        if len(o.tokenizer.encode(text)) + max_new_tokens > o.model.config.n_positions:
            raise UserError(f"{prompt[:60]!r} and {max_new_tokens} new tokens do not fit {o.name}'s "
                            f"{o.model.config.n_positions} positions; lower --max-new-tokens")  # fmt: skip
    markers = template.markers if template else ()
    return measure.complete(o, texts, Sampling(repetition_penalty=penalty), markers, max_new_tokens, seed=seed)


def _named(data: str) -> tuple[str, str]:
    name, equals, file = data.partition("=")
    if equals and not Path(data).exists():
        return name, file
    return (
        data.removeprefix("hub:").split(":")[0].rsplit("/", 1)[-1] if data.startswith("hub:") else Path(data).stem
    ), data


def short_names(models: list[str]) -> list[str]:
    """The last part of each path, or all of it where that is not unique."""
    short = [Path(m).name or m for m in models]
    return [s if short.count(s) == 1 else m for s, m in zip(short, models, strict=True)]


def read_classifier(name: str) -> dict:
    """{labels, multi_label, measures, on}: what summary.json in train_cls.py's directory says of the validation texts, or
    what `eval.py cls --json` wrote of others."""
    path = Path(name)
    found = read_json(path / "summary.json" if path.is_dir() else path)
    measures = found.get("classification") or found.get("measures")
    if not measures:
        raise UserError(
            f"{path}: no measures of a classifier there (train_cls.py with validation texts, eval.py cls --json)"
        )
    multi_label = not isinstance(measures["model"]["confusion"][0][0], int)
    on = "its validation texts" if path.is_dir() else "test texts"
    return {"labels": found["labels"], "multi_label": multi_label, "measures": measures, "on": on, "name": path.name}


def curves_of(name: str, directory: Path, unit: str = "tokens") -> list[dict]:
    """The loss curve of the run that made a directory, drawn for a light and a dark page; none for a model from elsewhere."""
    if not (directory / "metrics.jsonl").exists():
        return []
    images = {}
    for theme, ink in (("light", "#1c2733"), ("dark", "#dfe7ee")):
        image = report.draw_curves(directory, "svg", ink, unit, title="")
        images[theme] = "data:image/svg+xml;base64," + base64.b64encode(image).decode()
    return [{"name": name, **images}]


def write_page(content: dict, out: Path) -> Path:
    """Write report.json and report.html from what make_page, or the demo, put together."""
    jinja2 = need("jinja2")
    out.mkdir(parents=True, exist_ok=True)
    content = content | {"made": time.strftime("%Y-%m-%d"), "torch": version("torch").split("+")[0]}
    write_json({k: v for k, v in content.items() if k != "curves"}, out / "report.json")
    content["highest"] = {c: max(m["ppl"][c]["loss"] for m in content["models"]) for c in content["columns"]}
    env = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    page = env.from_string((Path(__file__).parent / "report.html").read_text(encoding="utf-8"))
    write_text(page.render(**content), out / "report.html")
    return out / "report.html"
