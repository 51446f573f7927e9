"""A held-out set of general chat, rendered from a few facts that a small model may know: what instructing a
model on something else could cost it. No row is of medicine, and none was written by a model.

    python bench/general_chat.py OUT      writes OUT/general.jsonl and OUT/choices.jsonl

general.jsonl has 200 conversations (`messages`), one in five of two questions, the second of which cannot be
understood without the first. choices.jsonl asks the same facts as MMLU is asked of small models (a cloze:
"Question: ...\\nAnswer:" and the answers' texts)."""

import json
import random
import sys
from pathlib import Path

CAPITALS = """France Paris, Italy Rome, Spain Madrid, Germany Berlin, Poland Warsaw, Austria Vienna,
Greece Athens, Portugal Lisbon, Ireland Dublin, Norway Oslo, Sweden Stockholm, Finland Helsinki,
Denmark Copenhagen, Hungary Budapest, Russia Moscow, Turkey Ankara, Egypt Cairo, Kenya Nairobi, Japan Tokyo,
China Beijing, Vietnam Hanoi, Thailand Bangkok, Canada Ottawa, Cuba Havana, Peru Lima, Chile Santiago,
Australia Canberra, Iran Tehran, Iraq Baghdad, Belgium Brussels, Scotland Edinburgh, Indonesia Jakarta"""
SYMBOLS = """gold Au, silver Ag, iron Fe, copper Cu, sodium Na, potassium K, oxygen O, hydrogen H, carbon C,
nitrogen N, helium He, lead Pb, tin Sn, calcium Ca, chlorine Cl, zinc Zn"""
OPPOSITES = """hot cold, big small, fast slow, early late, light dark, wet dry, rich poor, strong weak,
old young, full empty, hard soft, loud quiet, high low, near far, open closed, happy sad, true false,
thick thin, clean dirty, begin end"""
PAST = """go went, see saw, eat ate, write wrote, run ran, buy bought, think thought, bring brought,
swim swam, fly flew, take took, give gave, know knew, speak spoke, teach taught, catch caught"""
PLURALS = """child children, mouse mice, foot feet, tooth teeth, goose geese, man men, woman women,
leaf leaves, wolf wolves, knife knives, city cities, box boxes, ox oxen, person people"""
THINGS = {
    "thermometer": "an instrument that measures temperature",
    "compass": "an instrument that shows which way is north",
    "library": "a place where books are kept and lent",
    "bakery": "a shop where bread and cakes are made and sold",
    "telescope": "an instrument that makes distant objects look nearer",
    "bridge": "a structure that carries a road over a river or a valley",
    "calendar": "a table of the days and months of a year",
    "dictionary": "a book that explains what words mean",
    "orchestra": "a large group of musicians who play together",
    "volcano": "a mountain from which lava and gas can erupt",
    "desert": "a dry region where very little rain falls",
    "island": "a piece of land with water all around it",
    "carpenter": "a person who makes things of wood",
    "pilot": "a person who flies an aircraft",
    "novel": "a long story in prose",
    "glacier": "a large mass of ice that moves slowly",
    "bicycle": "a vehicle with two wheels that is moved with pedals",
    "umbrella": "a cover that keeps the rain off a person",
}
LISTS = {
    "the days of the week": "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday",
    "the four seasons": "spring, summer, autumn, winter",
    "the months that have 30 days": "April, June, September, November",
    "the planets from the sun outwards": "Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus, Neptune",
    "the vowels of the English alphabet": "a, e, i, o, u",
    "the even numbers from 1 to 10": "2, 4, 6, 8, 10",
}
# A question, how it is answered in a sentence, and how the next one is asked of another fact of the kind.
KINDS = {
    "capital": ("What is the capital of {}?", "The capital of {} is {}.", "And of {}?", CAPITALS),
    "symbol": ("What is the chemical symbol for {}?", "The symbol for {} is {}.", "And for {}?", SYMBOLS),
    "opposite": ('What is the opposite of "{}"?', 'The opposite of "{}" is "{}".', 'And of "{}"?', OPPOSITES),
    "past": ('What is the past tense of "{}"?', 'The past tense of "{}" is "{}".', 'And of "{}"?', PAST),
    "plural": ('What is the plural of "{}"?', 'The plural of "{}" is "{}".', 'And of "{}"?', PLURALS),
}


def conversations() -> list[dict]:
    """200 rows {"messages": [...]}, in an order of their own."""
    rng, alone, in_pairs = random.Random(0), [], []
    for question, answer, again, facts in KINDS.values():
        facts = [tuple(fact.split()) for fact in facts.split(",")]
        turns = [(question.format(a), answer.format(a, b)) for a, b in facts]
        alone += [[turn] for turn in turns]
        following = [(again.format(a), answer.format(a, b)) for a, b in facts]
        in_pairs += [[turn, following[k - 5]] for k, turn in enumerate(turns)]
    alone += [
        [(f'Explain the word "{thing}".', f'The word "{thing}" means {what}.')]
        for thing, what in THINGS.items()
    ]
    alone += [[(f"List {what}.", f"{words}.")] for what, words in LISTS.items()]
    words = [fact.split()[0] for fact in OPPOSITES.split(",")]
    for _ in range(20):
        a, b, some = rng.randint(2, 60), rng.randint(2, 39), rng.sample(words, 4)
        alone.append([(f"What is {a} plus {b}?", f"{a} plus {b} is {a + b}.")])
        asked = f"Put these words into alphabetical order: {', '.join(some)}."
        alone.append([(asked, f"{', '.join(sorted(some))}.")])
    rows = rng.sample(alone, 160) + rng.sample(in_pairs, 40)
    rng.shuffle(rows)
    roles = ("user", "assistant")
    return [
        {"messages": [{"role": r, "content": c} for turn in row for r, c in zip(roles, turn, strict=True)]}
        for row in rows
    ]


def choices() -> list[dict]:
    """Rows for eval.py choices: each fact among three wrong ones of its kind."""
    rng, rows = random.Random(0), []
    facts = {q: dict(f.split() for f in listed.split(",")) for q, _, _, listed in KINDS.values()}
    for question, answers in (facts | {'What is the meaning of "{}"?': THINGS}).items():
        for asked, right in answers.items():
            texts = [right, *rng.sample([a for a in answers.values() if a != right], 3)]
            rng.shuffle(texts)
            prompt = f"Question: {question.format(asked)}\nAnswer:"
            rows.append({"prompt": prompt, "choices": [f" {t}" for t in texts], "answer": f" {right}"})
    return rows


def write(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in (("general", conversations()), ("choices", choices())):
        (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
