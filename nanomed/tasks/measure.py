"""eval.py tasks: a model asked about every text of an instruction set's test sides, its answers read back, beside the baselines."""

import random
import time
from pathlib import Path

from nanomed.errors import UserError
from nanomed.evaluation import measure, tables
from nanomed.evaluation.calls import choose_template, overlap_with_training
from nanomed.evaluation.generate import Ending, Sampling, generate
from nanomed.files import read_json, read_object
from nanomed.tasks import score
from nanomed.tasks.baselines import LINEAR
from nanomed.tasks.forms import FORMS, Malformed
from nanomed.text import special
from nanomed.text.rows import read_rows
from nanomed.text.templates import Template

DEFAULT = "medtuned"  # the template of a model that was instructed with none
SLACK = 16  # tokens of an answer beyond what its form needs


def read_set(directory: Path) -> dict:
    """tasks.json of an instruction set. Raises UserError for a directory that holds none."""
    if not (directory / "tasks.json").is_file():
        raise UserError(f"{directory}: no tasks.json there; python -m nanomed.tasks makes an instruction set")
    made = read_object(directory / "tasks.json")
    tasks = made.get("tasks")
    whole = {"form", "labels", "measure"}
    if not isinstance(tasks, dict) or not all(
        isinstance(t, dict) and t.keys() >= whole and t["form"] in FORMS for t in tasks.values()
    ):
        raise UserError(f"{directory / 'tasks.json'}: not what python -m nanomed.tasks writes")
    return made


def longest_answer(task: dict, texts: list[str], tokenizer) -> list[int]:
    """How many tokens each answer may have: what its form can need, by its input and labels alone, and a few."""
    labels = [len(tokenizer.encode(f", {label}")) for label in task["labels"]]
    if task["form"] == "tags":
        tag = max(len(tokenizer.encode(f" : B-{label}\n")) for label in task["labels"])
        return [len(tokenizer.encode(text)) + tag * len(text.split(" ")) + SLACK for text in texts]
    if task["form"] in ("entities", "options"):
        return [len(tokenizer.encode(text)) + SLACK for text in texts]
    return [(sum(labels) if task["form"] == "classes" else max(labels)) + SLACK] * len(texts)


def ask(o: measure.Opened, rows: list[dict], task: dict, template: Template, batch_size: int, seed: int) -> list[dict]:
    """[{"answer", "stopped"}] of each row, greedily; an answer for which the model has no room is empty."""
    prompts = [o.tokenizer.prompt(template.ask(row["instruction"], row["input"])).tolist() for row in rows]
    left = [o.model.config.n_positions - len(p) for p in prompts]
    most = [min(n, room) for n, room in zip(longest_answer(task, [r["input"] for r in rows], o.tokenizer), left, strict=True)]
    fits = [k for k, n in enumerate(most) if n > 0]
    ending = Ending(o.tokenizer, template.ends)
    chosen, limits = [prompts[k] for k in fits], [most[k] for k in fits]
    done = generate(o.model, chosen, limits, Sampling(), ending, o.device, o.dtype, seed, batch_size)
    out = [{"answer": "", "stopped": False} for _ in rows]
    for k, completion in zip(fits, done, strict=True):
        out[k] = {"answer": completion.text, "stopped": completion.stopped}
    return out


def read_back(task: dict, rows: list[dict], answers: list[dict]) -> tuple[list[list[str] | None], dict[str, int]]:
    """(labels or tags of each answer, None if it is malformed or cut off, {what was wrong: how many})."""
    form, said, wrong = FORMS[task["form"]], [], {"malformed": 0, "cut_off": 0, "not_in_text": 0}
    for row, answer in zip(rows, answers, strict=True):
        if not answer["stopped"]:
            wrong["cut_off"] += 1
            said.append(None)
            continue
        try:
            found = form.read(answer["answer"], row["input"], task["labels"])
        except Malformed:
            wrong["malformed"] += 1
            found = None
        said.append(found)
        if form.tagged and found:
            wrong["not_in_text"] += len(found) - len(row["gold"])
    return said, wrong


def measure_task(task: dict, rows: list[dict], answers: list[dict], baselines: dict[str, list], seed: int) -> dict:
    """score.figures() of answers and of each baseline on the same texts; what was malformed; the paired difference from the
    linear baseline."""
    tagged, labels, gold = FORMS[task["form"]].tagged, task["labels"], [row["gold"] for row in rows]
    said, wrong = read_back(task, rows, answers)
    headline = task["measure"]
    out = {"form": task["form"], "measure": headline, "texts": len(rows), **wrong}
    out["malformed_share"] = (wrong["malformed"] + wrong["cut_off"]) / len(rows)
    out |= score.figures(tagged, labels, gold, said, seed)
    out["baselines"] = {name: score.figures(tagged, labels, gold, found, seed) for name, found in baselines.items()}
    if LINEAR in baselines:
        ours, theirs = (score.count(tagged, labels, gold, side) for side in (said, baselines[LINEAR]))
        out["against_linear"] = score.against(headline, ours, theirs, seed)
    return out | {"published": task.get("published", ""), "answers": answers}


def run(args) -> dict:
    """`eval.py tasks`: print a line a task as it is measured, then the table; give all of it."""
    directory = Path(args.tasks)
    made = read_set(directory)
    names = args.only or list(made["tasks"])
    if unknown := [name for name in names if name not in made["tasks"]]:
        raise UserError(f"--only {unknown[0]}: {directory} has {', '.join(made['tasks'])}")
    sets = {name: chosen(directory, name, args.limit, args.seed) for name in names}
    o = measure.open_asked(args)
    template = choose_template(args, o, DEFAULT)
    texts = sum(len(rows) for rows, _ in sets.values())
    print(f"{o}; {len(names)} tasks, {texts:,} texts; template {args.template}; greedy")
    out = {}
    for name, (rows, baselines) in sets.items():
        start = time.perf_counter()
        answers = ask(o, rows, made["tasks"][name], template, args.batch_size, args.seed)
        seconds = time.perf_counter() - start
        out[name] = measure_task(made["tasks"][name], rows, answers, baselines, args.seed) | {"seconds": seconds}
        cell = tables.measure_cell(out[name], out[name]["measure"])
        print(f"{name}: {len(rows):,} texts in {seconds:,.0f} s, {out[name]['measure'].replace('_', '-')} {cell}", flush=True)
    how = {"set": str(directory), "template": args.template, "limit": args.limit, "seed": args.seed}
    spelled = special.count(o.tokenizer, (row["input"] for rows, _ in sets.values() for row in rows))
    how["special_tokens"] = special.report(o.tokenizer, spelled)
    special.say(how["special_tokens"])
    result = {"model": o.name, "dtype": o.dtype, "quantize": o.quantize} | how | {"tasks": out}
    print(tables.text_table(table({o.name: result}), width=110))
    print(*say_linear(out), sep="\n")
    print(*(f"published, {name}: {task['published']}" for name, task in out.items() if task["published"]), sep="\n")
    return result | overlap_with_training(o, [row["input"] for rows, _ in sets.values() for row in rows])


def chosen(directory: Path, name: str, limit: int | None, seed: int) -> tuple[list[dict], dict[str, list]]:
    """The test rows of a task and the baselines' predictions for them; of these `limit` drawn by the seed."""
    rows = list(read_rows(str(directory / f"{name}.test.jsonl"), lambda row: row, None, False))
    baselines = read_json(directory / f"{name}.baselines.json")
    if not all(isinstance(row, dict) and row.keys() >= {"instruction", "input", "gold"} for row in rows):
        raise UserError(f"{directory / name}.test.jsonl: not what python -m nanomed.tasks writes")
    if any(len(found) != len(rows) for found in baselines.values()):
        raise UserError(f"{directory / name}.baselines.json: of other texts than {name}.test.jsonl; build the set again")
    keep = sorted(random.Random(seed).sample(range(len(rows)), min(limit or len(rows), len(rows))))
    return [rows[k] for k in keep], {b: [found[k] for k in keep] for b, found in baselines.items()}


# --- shown ------------------------------------------------------------------------------------------------------------


def table(results: dict[str, dict]) -> list[list[str]]:
    """A row a task: its headline of each result ({model: run()'s}), and of the baselines on the same texts."""
    first = next(iter(results.values()))["tasks"]
    baselines = list(dict.fromkeys(b for task in first.values() for b in task["baselines"]))
    head = ["task", "measure", *results, *baselines, "malformed or cut off"]
    rows = [head, ["---", "---", *["---:"] * (len(head) - 2)]]
    for name, task in first.items():
        measured = [r["tasks"].get(name, {}) for r in results.values()] + [task["baselines"].get(b, {}) for b in baselines]
        cells = [tables.measure_cell(found, task["measure"]) for found in measured]
        malformed = " / ".join(f"{r['tasks'][name]['malformed_share']:.1%}" for r in results.values() if name in r["tasks"])
        rows.append([name, task["measure"].replace("_", "-"), *cells, malformed])
    return rows


def say_linear(tasks: dict[str, dict]) -> list[str]:
    """In words, where a model loses against the linear baseline and where not."""
    said = {"better": [], "worse": [], score.CHANCE: []}
    for name, task in tasks.items():
        if "against_linear" in task:
            said[task["against_linear"]["verdict"]].append(name)
    what = {"better": "better than", "worse": "WORSE than", score.CHANCE: "no different, beyond chance, from"}
    return [f"{what[v]} the linear baseline: {', '.join(names)}" for v, names in said.items() if names]


def for_page(files: list[str]) -> dict:
    """What `eval.py tasks --json` wrote of one or several models, for report.html: head, rows, and what it says in words. Raises
    UserError for another file, and for models that were not asked about the same texts."""
    results = {}
    for name in files:
        found = read_object(Path(name))
        tasks = found.get("tasks")
        if not isinstance(tasks, dict) or not tasks or not all("baselines" in task for task in tasks.values()):
            raise UserError(f"{name}: not what eval.py tasks --json writes")
        alike = next(iter(results.values()), found)
        if any(found.get(k) != alike.get(k) for k in ("limit", "seed")) or tasks.keys() != alike["tasks"].keys():
            raise UserError(f"{name} and {files[0]} were not measured on the same texts (tasks, --limit, --seed)")
        results[str(found["model"])] = found
    head, _, *rows = table(results)
    said = [f"{model}: {line}." for model, r in results.items() for line in say_linear(r["tasks"])]
    published = [(name, task["published"]) for name, task in alike["tasks"].items() if task["published"]]
    return {"head": head, "rows": rows, "said": said, "published": published}
