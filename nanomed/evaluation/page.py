"""report.html, one file that needs nothing else, and report.json, which holds its figures; page.html is the
template.

What write_page() makes a page of, from eval.py compare or from the demo, is a dict:

    title      what the page is about
    claim      sentences made from the figures, the finding first
    table      {"groups": [(heading, columns it spans)], "head": [heading], "rows": [[cell]], "text": how to
               read it}; a cell is {"text"} and perhaps "note" (beneath it), "best" (of its column) and "bad"
               (a warning, beneath it)
    questions  [{"prompt", "expected", "group", "answers": [{"model", "text", "stopped", "right"}]}]; expected
               and right are None where no answer is known; group: the heading that it stands under, or ""
    curves     [{"name", "light", "dark"}], pictures as data: addresses
    classifier what read_classifier() gives; may be left out
    tasks      what nanomed.systems.tasks.measure.for_page() gives; may be left out
    benchmarks what nanomed.evaluation.suite.for_page() gives; may be left out
    differences  what differs between runs, {"head", "rows"}; may be left out
    models     [{"name", "model", "ppl": {column: result of measure_ppl}}], for report.json; not of runs
    measured   [(what, how)], of how all this was measured"""

import base64
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from nanomed import outputs
from nanomed.errors import UserError
from nanomed.evaluation import measure
from nanomed.evaluation.tables import WORSE, headed, ppl_cell, worse_than_guessing
from nanomed.files import read_object, typed, write_json, write_text
from nanomed.training.curves import draw_curves

PROGRAM, RECORD = "nanomed.evaluation.page", "report.json"
TITLE = "<title>nanomed: "  # of every page, so that one of another program is never replaced


Number = Annotated[float, Meta(ge=0, le=1)] | None


@dataclass
class Measures:
    """Of a classifier or a baseline, what is shown."""

    accuracy: Number
    macro_f1: Number
    accuracy_ci95: tuple[float, float] | None = None
    macro_f1_ci95: tuple[float, float] | None = None
    auc: Number = None
    calibration_error: Number = None
    f1: dict[str, Number] = field(default_factory=dict)
    confusion: list[list[Any]] = field(default_factory=list)


def open_out(out: Path) -> dict:
    """Take the directory of a page, among whatever else; gives what outputs.built() asks for. Raises
    UserError if there is a page that nanomed did not make."""
    html = out / "report.html"
    if html.exists() and not (html.is_file() and TITLE in html.read_text(encoding="utf-8", errors="replace")):
        raise UserError(f"--out {out}: holds a report.html of something else; choose another directory")
    return outputs.take(out, PROGRAM, RECORD, beside=True) or {"files": [html.name]}


def is_there(out: Path) -> bool:
    """Whether a page lies in `out`, all of it."""
    return outputs.is_whole(out, outputs.read_record(out / RECORD, PROGRAM) or {})


# --- its parts ----------------------------------------------------------------------------------------------


def answers_of(k: int, written: dict[str, list[dict]], is_right) -> list[dict]:
    """What each model wrote after the k-th prompt, for the page; written: {model's name: [{completion,
    stopped}]}."""
    out = []
    for name, done in written.items():
        text = done[k]["completion"].strip()
        out.append({"model": name, "text": text, "stopped": done[k]["stopped"], "right": is_right(text)})
    return out


def short(ppl: float) -> str:
    return f"{ppl:.2f}" if ppl < 10 else f"{ppl:.1f}" if ppl < 100 else f"{ppl:,.0f}"


def moved(first: dict, r: dict) -> str:
    """From one result of measure_ppl to another on the same texts: `perplexity 31.9 → 16.8 (-47 %, intervals
    apart)`."""
    if r["tokens_scored"] != first["tokens_scored"]:  # perplexities of other tokens cannot be compared
        before, after = first["bits_per_byte"], r["bits_per_byte"]
        changed = f"{100 * (after / before - 1):+.0f} %"
        return f"bits a byte {before:.3f} → {after:.3f} ({changed}, another tokenizer)"
    said = [f"{100 * (r['ppl'] / first['ppl'] - 1):+,.0f} %"]
    if first["ppl_ci95"] and r["ppl_ci95"]:
        (a, b), (c, d) = first["ppl_ci95"], r["ppl_ci95"]
        said.append("intervals apart" if b < c or d < a else "intervals overlap")
    if worse_than_guessing(r["ppl"], r.get("vocab_size")):
        said.append(WORSE)
    return f"perplexity {short(first['ppl'])} → {short(r['ppl'])} ({', '.join(said)})"


def mark_best(rows: list[list[dict]], values: list[list[float | None]], lowest: list[bool]) -> None:
    """Mark the best cells of each column but the first; values: the figures of those columns, row by row.
    Cells that read the same are equally good, and where all do, none is best."""
    for k, low in enumerate(lowest):
        column = [(v[k], row[k + 1]) for v, row in zip(values, rows, strict=True) if v[k] is not None]
        if len({cell["text"] for _, cell in column}) < 2:
            continue
        best = (min if low else max)(column, key=lambda pair: pair[0])[1]["text"]
        for _, cell in column:
            cell["best"] = cell["text"] == best


def as_text(table: dict) -> list[list[str]]:
    """The page's table for a terminal."""
    groups = [group for group, span in table["groups"] for _ in range(span)]
    head = [f"{group}: {h}" if group else h for group, h in zip(groups, table["head"], strict=True)]
    noted = ([c["text"] + (f" ({c['note']})" if c.get("note") else "") for c in row] for row in table["rows"])
    return headed(head, list(noted))


def ppl_page_cell(ppl: float, vocab_size: int | None, note: str = "") -> dict:
    bad = WORSE if worse_than_guessing(ppl, vocab_size) else ""
    return {"text": ppl_cell(ppl), "note": note, "bad": bad}


def protocol(models: list[dict], o: measure.Opened) -> list[tuple[str, str]]:
    """[(what, how)] of how all models were measured; o: one of them, all being on one device. What documents
    begin with is context only: the custom of the texts that a model was pretrained on."""
    firsts = {m["name"]: next(iter(m["ppl"].values())) for m in models}
    r = next(iter(firsts.values()))
    begins = {name: first["begins_with"] for name, first in firsts.items()}
    alike = len(set(begins.values())) == 1
    return [
        ("windows", f"{r['context']} tokens, stride {r['stride']}, the same for every model and text"),
        ("documents begin with", r["begins_with"] if alike else "; ".join(map(": ".join, begins.items()))),
        ("computed", f"{o.device}, {o.dtype}, torch {version('torch').split('+')[0]}"),
    ]


def read_classifier(name: str) -> dict:
    """{labels, multi_label, measures, on}: what summary.json in train_cls.py's directory says of the
    validation texts, or what `eval.py cls --json` wrote of others."""
    path = Path(name)
    file = path / "summary.json" if path.is_dir() else path
    found = read_object(file)
    measures = found.get("classification") or found.get("measures")
    if not isinstance(measures, dict) or "model" not in measures:
        made_by = "train_cls.py with validation texts, eval.py cls --json"
        raise UserError(f"{path}: no measures of a classifier there ({made_by})")
    labels = typed(list[str], found.get("labels"), f"{file}: labels")
    model = {who: typed(Measures, measured, f"{file}: {who}") for who, measured in measures.items()}["model"]
    first = model.confusion[0] if model.confusion else []
    multi_label = bool(first) and isinstance(first[0], list)  # a matrix a label
    matrix = list[list[Annotated[int, Meta(ge=0)]]]
    rows = model.f1 if multi_label else typed(matrix, model.confusion, f"{file}: confusion")
    if len(rows) != len(labels):
        raise UserError(f"{file}: {len(labels)} labels, and measures of {len(rows)}")
    on = "its validation texts" if path.is_dir() else "test texts"
    return {"labels": labels, "multi_label": multi_label, "measures": measures, "on": on, "name": path.name}


def curves_of(name: str, directory: Path, unit: str = "tokens") -> list[dict]:
    """The curves of the run that made a directory; none for a model from elsewhere."""
    return drawn(name, {name: directory}, unit) if (directory / "metrics.jsonl").exists() else []


def drawn(name: str, runs: dict[str, Path], unit: str) -> list[dict]:
    """The curves of runs, {name: directory}, over one another, for a light and a dark page."""
    images = {}
    for theme, ink in (("light", "#1c2733"), ("dark", "#dfe7ee")):
        image = base64.b64encode(draw_curves(runs, "svg", ink, unit, title=""))
        images[theme] = f"data:image/svg+xml;base64,{image.decode()}"
    return [{"name": name, **images}]


# --- the files ----------------------------------------------------------------------------------------------


def write_page(content: dict, out: Path) -> Path:
    """Write report.html, then report.json, from the dict that is described above."""
    import jinja2

    held = open_out(out)
    made = {"made": time.strftime("%Y-%m-%d"), "torch": version("torch").split("+")[0]}
    content = dict.fromkeys(("classifier", "tasks", "benchmarks", "differences")) | content | made
    how = {"trim_blocks": True, "lstrip_blocks": True, "undefined": jinja2.StrictUndefined}
    env = jinja2.Environment(autoescape=True, **how)
    page = env.from_string((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))
    starts = set(accumulate(span for _, span in content["table"]["groups"]))  # columns where a group begins
    html = page.render(**content, starts=starts)
    with outputs.built(out, PROGRAM, held, RECORD) as place:
        write_text(html, place / "report.html")
        write_json({k: v for k, v in content.items() if k != "curves"}, place / RECORD)
    return out / "report.html"
