"""A run of a recipe into a directory: each phase and each measurement is a command of the scripts that
everyone else uses, printed before it runs. What is there already is not made again."""

import shutil
from argparse import Namespace
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nanomed import hub, outputs
from nanomed.errors import UserError
from nanomed.evaluation.page import is_there
from nanomed.files import make_temporary, read_json, typed, write_json, write_text
from nanomed.scripts import run, shown
from nanomed.systems import trial
from nanomed.systems.figures import mistakes_of
from nanomed.systems.recipe import CLASSIFIED, LABELLED, MODEL_OF, NEEDED, ROWS, SCRIPTS, Recipe, prepare

PROGRAM, RECORD = "nanomed.reproduce", "reproduce.json"  # a directory is one run of one recipe
# Flags that decide what comes out; those that make the run smaller than the recipe's.
ASKED = "field limit max_steps context batch_size answers max_new_tokens dtype device".split()
SHORTER = ("limit", "max_steps", "context", "batch_size")
TEXT, WEIGHTS = "the recipe", "content of the model"  # beside the flags
PROMPTS = "prompts.txt"
OURS = {"measured": (".json",), "data": (".train.jsonl", ".test.jsonl", ".test.texts.jsonl")}


def words_of(args: Namespace, *names: str) -> list:
    """The flags that were given, as words of a command line."""
    given = {name: getattr(args, name) for name in names if getattr(args, name) not in (None, "auto")}
    return [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", value)]


@dataclass
class Reproduction:
    """args: of reproduce.py."""

    recipe: Recipe
    out: Path
    args: Namespace

    def stages(self, before: str | None = None) -> dict[str, str]:
        """{base, adapted, ...: the language model, as commands take it}, of all phases or of those before
        one."""
        names = [*self.recipe.phases]
        names = [n for n in names[: names.index(before) if before else None] if n != "classify"]
        model = self.recipe.model
        base = {"base": shown(Path(model)) if Path(model).exists() else model}
        return base | {MODEL_OF[name]: shown(self.out / MODEL_OF[name]) for name in names}

    def begin(self) -> None:
        """Make DIR this run's, with its texts in data/, or go on with it; what was begun and has trained
        nothing yet is begun anew. Raises UserError, with nothing touched, if DIR is another run's, or holds
        anything else, and for whatever can be known to fail later."""
        recipe = self.recipe
        trial.published(recipe)
        trained = {phase: trial.parsed(recipe, phase, self.training(phase)[1:]) for phase in recipe.phases}
        held, asked = outputs.take(self.out, PROGRAM, RECORD), self._asked()
        anew = self._is_another(held, asked)
        trial.contexts(recipe, self.args.context)
        trial.prompts(recipe, self.longest)
        trial.labelled(recipe)
        for phase, s in trained.items():
            trial.training(recipe, phase, s, self.stages()["base"])
        made = make_temporary(self.out)
        try:
            texts = self.data() if self.data().exists() and not anew else made / "data"
            prepare(recipe, texts, self.args.limit)
            if anew:
                clear(self.out)
            write_json(outputs.stamp(PROGRAM) | {"asked": asked}, self.out / RECORD)
            if not self.data().exists():  # texts of one moment, all of them or none
                texts.rename(self.data())
        finally:
            shutil.rmtree(made, ignore_errors=True)
        prompts = self.out / PROMPTS
        if not prompts.exists():
            write_text("".join(prompt + "\n" for prompt in recipe.prompts), prompts)

    def _is_another(self, held: dict, asked: dict) -> bool:
        """Whether the record of DIR is of a run that was asked for otherwise. Raises UserError if that one
        trained something, or if a file there is no run's."""
        was = typed(dict, held.get("asked", {}), self.out / RECORD)
        changed = [k for k in was | asked if was.get(k) != asked.get(k)] if held else []
        if not changed:
            return False
        if any((self.out / name / "run.json").exists() for name in MODEL_OF.values()):
            k = changed[0]
            values = "" if k in (TEXT, WEIGHTS) else f" {was.get(k)}, now {asked.get(k)}"
            mend = "choose another directory (make: RUNS=...)"
            raise UserError(f"--out {self.out}: was made with another {k}{values}; {mend}")
        check_ours(self.out)
        return True

    def _asked(self) -> dict:
        asked = {TEXT: self.recipe.path.read_text(encoding="utf-8")}
        for name, value in self.recipe.instead.items():
            asked["--model" if name == "model" else f"--data {name}"] = value
        asked |= {f"--{k.replace('_', '-')}": getattr(self.args, k) for k in ASKED}
        return asked | {WEIGHTS: hub.fingerprint(hub.find(self.recipe.model))}

    def data(self, name: str = "") -> Path:
        return self.out / "data" / name

    def file(self, name: str, side: str = "test") -> str:
        """Of the texts of a name, as commands take it."""
        return shown(self.data(f"{name}.{side}.jsonl"))

    def texts(self) -> dict[str, str]:
        """The held-out texts that perplexities are of, by the names of their data: rows as whole texts, and
        no negatives."""
        names = self.recipe.texts
        return {name: self.file(name, "test.texts" if name == ROWS else "test") for name in names}

    def windows(self) -> list:
        context = self.args.context or self.recipe.context
        return ["--context", context] if context else []

    def training(self, phase: str) -> list[str]:
        """The command of a phase, from the model that the phases before left; what is measured on is held out
        of it."""
        recipe, file, before = self.recipe, self.file, [*self.stages(phase).values()]
        command = [SCRIPTS[phase], "--config", shown(recipe.path), "--model", before[-1], "--resume"]
        if phase == "adapt":
            command += ["--data", file("corpus", "train"), "--val-data", f"corpus={file('corpus')}"]
        elif phase == "instruct":
            command += ["--data", file(ROWS, "train"), "--val-data", f"pairs={file(ROWS)}"]
            replayed = {file(name, "train"): d.ratio for name, d in recipe.data.items() if d.ratio}
            command += ["--replay", *replayed, "--replay-ratio", sum(replayed.values())] if replayed else []
        else:
            command += ["--positives", file("corpus", "train"), "--negatives", file("negatives", "train")]
            command += ["--positive-name", "biomedical", "--negative-name", "general"]
            command += ["--val-data", shown(self.data(CLASSIFIED))]
        others = [name for name in recipe.data if name not in NEEDED[phase]]  # those are validated on
        held = [file(name) for name in others if recipe.data[name].test or recipe.data[name].kept]
        command += ["--exclude", *held, "--text-field", "text,context.contexts,context"] if held else []
        sizes = words_of(self.args, "device", "dtype", "max_steps", "context", "batch_size")
        return [str(word) for word in (*command, "--out", shown(self.out / MODEL_OF[phase]), *sizes)]

    def train(self, phase: str) -> None:
        run(self.training(phase))

    def measured(self, stage: str, name: str, *command) -> dict:
        """What a command of eval.py says of a stage's model, kept in a file."""
        file = self.out / "measured" / f"{stage}.{name}.json"
        file.parent.mkdir(exist_ok=True)
        if not file.exists():
            common = words_of(self.args, "device", "dtype", "batch_size")
            run(["eval.py", *command, "--model", self.stages()[stage], "--json", shown(file), *common])
        return read_json(file)

    def measure(self, stage: str) -> dict:
        """Everything that the recipe measures of one model: {data: result of eval.py ppl, "answers": of qa,
        "choices": of choices}."""
        recipe, args, found = self.recipe, self.args, {}
        measured = partial(self.measured, stage)
        for name, file in self.texts().items():
            mistakes = mistakes_of(recipe, stage, name)
            also = ["--also", ",".join(mistakes)] if mistakes else []
            found[name] = measured(name, "ppl", "--data", file, *self.windows(), *also)
        if ROWS in recipe.data:
            asked = ["--data", self.file(ROWS), "--template", recipe.template, "--limit", args.answers]
            answers = measured("answers", "qa", *asked, "--max-new-tokens", args.max_new_tokens)
            found["answers"] = without(answers, "answers")
        if recipe.choices:
            asked = ["--data", self.file(LABELLED), "--format", recipe.choices]
            choices = measured("choices", "choices", *asked, *words_of(args, "limit"))
            found["choices"] = without(choices, "predictions", "loglikelihoods", "loglikelihoods_per_byte")
        greedy = ["--temperature", 0, "--repetition-penalty", 1.2]
        measured("generations", "generate", *self.prompts(), *greedy)
        return found

    @property
    def longest(self) -> int:
        """Tokens of what is written after a prompt."""
        return min(60, self.args.max_new_tokens)

    def prompts(self) -> list:
        template = ["--template", self.recipe.template] if trial.undecided(self.recipe) else []
        return ["--prompts", shown(self.out / PROMPTS), "--max-new-tokens", self.longest, *template]

    def classified(self) -> dict:
        """The third phase on the held-out texts of both sides, beside the baselines."""
        found = read_json(self.out / MODEL_OF["classify"] / "summary.json").get("classification") or {}
        keys = ("texts", "accuracy", "accuracy_ci95", "macro_f1", "macro_f1_ci95")
        beside = {name: {key: r[key] for key in keys} for name, r in found.items()}
        return {"beside": beside} | beside.get("model", {})

    def page(self) -> None:
        """report.html, by eval.py compare."""
        if is_there(self.out):
            return
        columns = [f"{name}={file}" for name, file in self.texts().items()]
        command = ["eval.py", "compare", "--models", *self.stages().values(), "--data", *columns]
        command += [*self.prompts(), "--out", shown(self.out), *self.windows()]
        command += words_of(self.args, "device", "dtype", "batch_size")
        if "classify" in self.recipe.phases:
            command += ["--classifier", shown(self.out / MODEL_OF["classify"])]
        run(command)


def without(result: dict, *keys: str) -> dict:
    return {key: value for key, value in result.items() if key not in keys}


def check_ours(out: Path) -> None:
    """Raises UserError if among the texts and what was measured there is any other file."""
    for name, ends in OURS.items():
        if odd := [n for n in outputs.names_in(out / name) if not n.endswith(ends)]:
            mend = "is no part of a run; move it away, or choose another directory"
            raise UserError(f"--out {out}: {name}/{min(odd)} {mend}")


def clear(out: Path) -> None:
    """Remove what was measured, then the texts: nothing outlives the texts that it was measured on."""
    (out / PROMPTS).unlink(missing_ok=True)
    for name in OURS:
        shutil.rmtree(out / name, ignore_errors=True)
