"""What becomes of the sides of a task: the rows that are trained on, all tasks together, and what tasks.json
says of it."""

import random
import re
from collections import Counter

from nanomed.errors import UserError
from nanomed.systems.tasks.cases import Case
from nanomed.systems.tasks.classes import joined
from nanomed.systems.tasks.sources import OF_MENTIONS, Task, same


def row(task: Task, case: Case, seed, gold: bool = True) -> dict:
    """Of a file: the case with one of the task's instructions, which the seed draws."""
    asked = random.Random(str(seed)).choice(task.source.instructions)
    asked = re.sub(r"\{\{((?!labels\})\w+)\}\}", r"{\1}", asked)
    out = {"instruction": asked.replace("{labels}", joined(task.labels, task.labels)), "input": case.input}
    out |= {"output": task.form.write(case, task.labels), "source": task.source.name}
    out |= {"group": case.group} if case.group else {}
    return out | ({"gold": list(case.gold)} if gold else {})


def rows_of(task: Task, side: str, seed: int) -> list[dict]:
    """All of a side, for the file NAME.SIDE.jsonl."""
    return [row(task, case, (seed, task.source.name, side, k)) for k, case in enumerate(task.sides[side])]


def drawn(task: Task, seed: int) -> list[int]:
    """Which of a task's training cases are in the mixture, once: up to `rows`, drawn by the seed. balance: as
    many of each label, those of the rarer ones again and again."""
    order = list(range(len(task.train)))
    random.Random(f"{seed} {task.source.name}").shuffle(order)
    n = min(task.source.rows or len(order), len(order))
    if not task.source.balance:
        return order[:n]
    kinds = {}
    for k in order:
        kinds.setdefault(task.train[k].gold, []).append(k)
    return [own[turn % len(own)] for turn in range(n) for own in kinds.values()][:n]


def mixture(tasks: list[Task], seed: int) -> list[dict]:
    """The rows to train on, shuffled by the seed; a case that is there again is asked about in words that are
    drawn anew. Raises UserError if there are none."""
    out = []
    for task in tasks:
        again = Counter()
        for k in drawn(task, seed) * task.source.times:
            of = (seed, task.source.name, k, again[k]) if again[k] else (seed, task.source.name, k)
            out.append(row(task, task.train[k], of, gold=False))
            again[k] += 1
    if not out:
        raise UserError("no task is left for the mixture (--without)")
    random.Random(seed).shuffle(out)
    return out


def describe(task: Task, seed: int) -> dict:
    """What tasks.json says of a task."""

    def of_sides(count) -> dict[str, int]:
        return {side: count(cases) for side, cases in task.sides.items()}

    keys = ("form", "instructions", "rows", "balance", "times", "words", "measure", "published")
    out = {key: getattr(task.source, key) for key in keys} | {"labels": task.labels} | of_sides(len)
    out["in_mixture"] = len(drawn(task, seed)) * task.source.times
    out |= {"removed": task.removed, "of_groups": task.of_groups, "bad_rows": task.bad}
    out["cut"] = of_sides(lambda cases: sum(case.cut for case in cases))
    out["repeated"] = of_sides(lambda cases: len(cases) - len({same(case) for case in cases}))
    for key in OF_MENTIONS:
        out[key] = of_sides(lambda cases, key=key: sum(case.counts.get(key, 0) for case in cases))
    return out
