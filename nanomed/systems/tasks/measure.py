"""eval.py tasks: a model asked about every text of an instruction set's test sides, its answers read back,
beside the baselines; labels of few by their likelihood, too."""

from dataclasses import dataclass, field, make_dataclass
from typing import Literal, TypedDict

from nanomed.evaluation import tables
from nanomed.evaluation.generate import Ending, Sampling, generate
from nanomed.evaluation.measure import Opened
from nanomed.evaluation.suite import by_model
from nanomed.systems.tasks import likelihood, score
from nanomed.systems.tasks.baselines import LINEAR
from nanomed.systems.tasks.cases import Malformed
from nanomed.systems.tasks.classes import mark
from nanomed.systems.tasks.entities import most_numbers
from nanomed.systems.tasks.forms import FORMS
from nanomed.systems.tasks.likelihood import WRITTEN
from nanomed.systems.tasks.sources import MEASURES, OF_MENTIONS, say_counts
from nanomed.text.templates import Template

# Of tasks.json, what stands beside each figure.
SAID = ("train", "test", "words", "removed", "of_groups", "bad_rows", "cut", "repeated", *OF_MENTIONS)
SLACK = 16  # tokens of an answer beyond what its form needs
WRONG = ("malformed", "cut_off", "no_room", "not_in_text")  # of an answer


def longest_answer(task: dict, texts: list[str], tokenizer) -> list[int]:
    """How many tokens each answer may have: what its form can need, by its input and labels alone, and a
    few."""

    def size(text):
        return len(tokenizer.encode(text))

    form, labels, lines = task["form"], task["labels"], [text.replace(" ", "\n") for text in texts]
    if form == "tags":
        tag = max(size(f" : B-{label}\n") for label in labels)
        return [size(text) + tag * (text.count("\n") + 1) + SLACK for text in lines]
    if form == "entities":
        kind = max(size(f" : {label}\n") for label in labels) if len(labels) > 1 else 0
        number = size(" #10")
        most = [kind * (text.count("\n") + 1) + number * most_numbers(text) for text in lines]
        return [size(text) + more + SLACK for text, more in zip(lines, most, strict=True)]
    if form == "options":
        return [size(text) + SLACK for text in texts]
    sizes = [size(f"{mark(labels)} {label}") for label in labels]
    return [(sum(sizes) if form == "classes" else max(sizes)) + SLACK] * len(texts)


def ask_in(ways, o: Opened, rows: list[dict], task: dict, template: Template, batch_size: int, seed: int):
    """What likelihood.ask() and ask() give of each row, as the ways want it. Only what the likelihoods do not
    show is written."""
    out, writes = [{} for _ in rows], WRITTEN in ways
    if set(ways) - {WRITTEN}:
        out = likelihood.ask(o, rows, task, template, batch_size, greedy=writes)
    unknown = [k for k, answer in enumerate(out) if writes and "answer" not in answer]
    written = ask(o, [rows[k] for k in unknown], task, template, batch_size, seed) if unknown else []
    for k, answer in zip(unknown, written, strict=True):
        out[k] |= answer
    return out


def ask(o: Opened, rows: list[dict], task: dict, template: Template, batch_size: int, seed: int):
    """[{"answer", "stopped", "room"}] of each row, greedily; an answer for which the model has no room is
    empty."""
    prompts = [o.tokenizer.prompt(template.ask(row["instruction"], row["input"])).tolist() for row in rows]
    most = longest_answer(task, [row["input"] for row in rows], o.tokenizer)
    most = [min(n, o.model.config.n_positions - len(p)) for n, p in zip(most, prompts, strict=True)]
    fits = [k for k, n in enumerate(most) if n > 0]
    ending = Ending(o.tokenizer, template.ends)
    chosen, limits = [prompts[k] for k in fits], [most[k] for k in fits]
    done = generate(o.model, chosen, limits, Sampling(), ending, o.device, o.dtype, seed, batch_size)
    out = [{"answer": "", "stopped": False, "room": False} for _ in rows]
    for k, completion in zip(fits, done, strict=True):
        out[k] = {"answer": completion.text, "stopped": completion.stopped, "room": True}
    return out


def read_back(task: dict, rows: list[dict], answers: list[dict]) -> tuple[list[list[str] | None], dict]:
    """(labels or tags of each answer, None if it is malformed or cut off, {what was wrong: how many})."""
    form, said, wrong = FORMS[task["form"]], [], dict.fromkeys(WRONG, 0)
    for row, answer in zip(rows, answers, strict=True):
        found = None
        if not answer["stopped"]:
            wrong["cut_off"] += 1
            wrong["no_room"] += not answer["room"]
        else:
            try:
                found = form.read(answer["answer"], row["input"], task["labels"])
            except Malformed:
                wrong["malformed"] += 1
        said.append(found)
        if form.tagged and found:
            wrong["not_in_text"] += len(found) - len(row["gold"])
    return said, wrong


def said_in(way: str, task: dict, rows: list[dict], answers: list[dict]) -> list[list[str] | None]:
    """The labels or tags of each answer; None if it is malformed or cut off."""
    if way == WRITTEN:
        return read_back(task, rows, answers)[0]
    return [[likelihood.likeliest(answer, way)] for answer in answers]


def measure_task(task: dict, rows, answers, baselines: dict, seed: int, ways=(WRITTEN,)) -> dict:
    """score.figures() of answers and of each baseline on the same texts, and the paired difference from the
    linear baseline: of the first of the ways in which the texts were asked about, and below "ways" of each;
    what was malformed in writing."""
    headline, asked = task["measure"], (FORMS[task["form"]].tagged, task["labels"], [r["gold"] for r in rows])
    wrong = read_back(task, rows, answers)[1] if WRITTEN in ways else dict.fromkeys(WRONG, 0)
    out = {"form": task["form"], "measure": headline, "texts": len(rows), **wrong}
    out["set"] = {key: task[key] for key in SAID}
    out["malformed_share"] = (wrong["malformed"] + wrong["cut_off"]) / len(rows)
    of_ways = {}
    for way in ways:
        said = said_in(way, task, rows, answers)
        of_ways[way] = score.figures(*asked, said, seed)
        if LINEAR in baselines:
            of_ways[way]["against_linear"] = _against(baselines[LINEAR], headline, asked, said, seed)
    out |= of_ways[ways[0]] | {"ways": of_ways}
    out["baselines"] = {name: score.figures(*asked, found, seed) for name, found in baselines.items()}
    return out | {"published": task.get("published", ""), "answers": answers}


def _against(linear, headline: str, asked: tuple, said, seed: int) -> dict:
    tagged, labels, gold = asked
    way, ours, their_way, theirs = score.hardest(tagged, headline, labels, gold, said, linear)
    found = score.against(headline, ours, theirs, seed)
    return found | ({"ways": [way, their_way]} if tagged else {})


# --- shown --------------------------------------------------------------------------------------------------


TWO_WAYS = (
    "entity F1 is strict (IOB2): an I- tag without a B- of its type before it is no entity; `repaired`: it"
    " begins one. The linear models are compared by the higher of the two, a model by the lower."
)


def cell(found: dict, key: str) -> str:
    """A figure with its interval, and of tags in which an I- has no B- the one with these repaired; `-` where
    there is nothing to count, empty for what was not measured."""
    if key not in found:
        return ""
    shown, repaired = (tables.measure_cell(found, k) or "-" for k in (key, key + "_repaired"))
    more = f"; {repaired} with {found['orphans']:,} I- repaired" if found.get("orphans") else ""
    return shown + more


def say_figure(task: dict) -> str:
    """A task's figure, and what its set's rows were before."""
    said = [f"{task['measure'].replace('_', '-')} {cell(task, task['measure'])}"]
    said += [f"{task['no_room']:,} prompts left no room for an answer"] if task["no_room"] else []
    counts = say_counts(task["set"])
    return "; ".join(said + [f"of the set: {', '.join(counts)}"] * bool(counts))


def table(results: dict[str, dict]) -> list[list[str]]:
    """A row a task: its headline of each result ({model: what eval.py tasks gives}), in each way in which it
    was asked for, and of the baselines on the same texts."""
    first = next(iter(results.values()))["tasks"]
    baselines = list(dict.fromkeys(b for task in first.values() for b in task["baselines"]))
    columns = [(name, r["tasks"], way) for name, r in results.items() for way in _ways(r["tasks"])]
    names = [f"{name}, {way}" if len(_ways(tasks)) > 1 else name for name, tasks, way in columns]
    head = ["task", "measure", *names, *baselines, "malformed or cut off"]
    rows = [head, ["---", "---", *["---:"] * (len(head) - 2)]]
    for name, task in first.items():
        malformed = " / ".join(f"{r['tasks'][name]['malformed_share']:.1%}" for r in results.values())
        measured = [_in_way(tasks[name], way) for _, tasks, way in columns]
        measured += [task["baselines"].get(b, {}) for b in baselines]
        cells = [cell(found, task["measure"]) for found in measured]
        rows.append([name, task["measure"].replace("_", "-"), *cells, malformed])
    return rows


def _ways(tasks: dict[str, dict]) -> list[str]:
    """In which tasks were asked about; an earlier version's were asked to write."""
    found = {way for task in tasks.values() for way in task.get("ways") or (WRITTEN,)}
    return [way for way in likelihood.WAYS if way in found]


def _in_way(task: dict, way: str) -> dict:
    return (task.get("ways") or {WRITTEN: task}).get(way, {})


def say_linear(tasks: dict[str, dict]) -> list[str]:
    """In words, where a model loses against the linear baseline and where not: by the way that counts of each
    task, then by the others."""
    out, ways, counts = _verdicts(tasks), _ways(tasks), {}
    for name, task in tasks.items():
        counts.setdefault(next(iter(task.get("ways") or (WRITTEN,))), []).append(name)
    if len(ways) > 1:
        of_ways = [f"{way} of {', '.join(names)}" for way, names in counts.items()]
        out.insert(0, f"what counts: {'; '.join(of_ways)}")
    for way in ways:
        others = {name: _in_way(t, way) for name, t in tasks.items() if name not in counts.get(way, ())}
        out += [f"{way}, which does not count there: {line}" for line in _verdicts(others)]
    return out


def _verdicts(found: dict[str, dict]) -> list[str]:
    said = {"better": [], "worse": [], score.CHANCE: []}
    for name, figures in found.items():
        if figures.get("against_linear"):
            said[figures["against_linear"]["verdict"]].append(name)
    what = {"better": "better than", "worse": "WORSE than", score.CHANCE: "no different, beyond chance, from"}
    return [f"{what[v]} the linear baseline: {', '.join(names)}" for v, names in said.items() if names]


# Of a task or a baseline in a result of eval.py tasks, what is shown.
ENDS = {"": float | None, "_ci95": tuple[float, float] | None}
KEYS = [(m + way + end, ENDS[end], None) for m in MEASURES for way in ("", "_repaired") for end in ENDS]
Figures = make_dataclass("Figures", [*KEYS, ("orphans", int, 0)])


class Against(TypedDict):
    verdict: Literal["better", "worse", score.CHANCE]


@dataclass(kw_only=True)
class InWay(Figures):
    against_linear: Against | None = None


@dataclass
class Result:
    model: str
    tasks: dict[str, "Shown"]
    limit: int | None
    seed: int


@dataclass(kw_only=True)
class Shown(InWay):
    measure: Literal[MEASURES]
    baselines: dict[str, Figures]
    malformed_share: float
    published: str = ""
    ways: dict[Literal[likelihood.WAYS], InWay] = field(default_factory=dict)


def for_page(files: list[str]) -> dict:
    """What `eval.py tasks --json` wrote of one or several models, for report.html: head, rows, and what it
    says in words."""

    def asked_of(result: Result):
        return result.tasks and (result.limit, result.seed, result.tasks.keys())

    results = by_model(files, "tasks", Result, asked_of, "texts (tasks, --limit, --seed)")
    head, _, *rows = table(results)
    said = [f"{model}: {line}." for model, r in results.items() for line in say_linear(r["tasks"])]
    tasks = next(iter(results.values()))["tasks"].items()
    published = [(name, task["published"]) for name, task in tasks if task["published"]]
    return {"head": head, "rows": rows, "said": said, "published": published}
