"""A question and its options, by letters: which of them a row calls right, and which of them an answer
means."""

from dataclasses import replace

from nanomed.errors import UserError
from nanomed.evaluation.benchmarks import LETTERS, lettered, medmcqa_options
from nanomed.systems.tasks.cases import Case, Malformed, Settled, missing, text_of
from nanomed.systems.tasks.classes import bare, plain
from nanomed.text.rows import BadRow, get_value

# What an answer can be; the first that all rows of a source allow is it. A number counts from 0; MedMCQA's
# `cop` from 0 on the Hub, and from 1 in the authors' release.
ANSWERS = ("text", "letter", "number", "from 1")


def take_options(row, fields: dict, rename: dict, most: int | None, how=None, names=None) -> Case:
    """A question and its options, by letters. The row's answer is an option's text, its letter (or its key,
    of options by keys), or its number from 0; gold holds every (kind, letter) that it can be, until
    settle_options() has seen the file."""
    options, keys = _options(row, fields)
    value = get_value(row, fields["label"])
    if value is None:
        raise missing(row, fields, "label", "answer")
    value = int(value) if isinstance(value, float) and value.is_integer() else value
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise BadRow(f"an answer must be a text or a whole number, not {value!r}")
    answer = rename.get(str(value), str(value))
    named = {"text": options if isinstance(value, str) else []}  # a number is no text
    named["letter"] = [key.upper() for key in keys]
    named["number"] = list(map(str, range(len(options))))
    if all(name.isdecimal() for name in named["letter"]):  # options called 1, 2, 3 are not counted from 0
        named["number"] = []
    is_cop = medmcqa_options(row) is not None and value == get_value(row, "cop")
    named["from 1"] = list(map(str, range(1, len(options) + 1))) if is_cop else []
    found = []
    for kind in ANSWERS:
        said = answer.upper() if kind == "letter" else answer
        found += [(kind, LETTERS[k]) for k, name in enumerate(named[kind]) if name == said]
    if not found:
        raise BadRow(f"the answer {answer!r} is none of the options' texts, letters or numbers (from 0)")
    lines = [f"{letter}. {plain(option)}" for letter, option in zip(LETTERS, options, strict=False)]
    return Case("\n".join([text_of(row, fields, "question"), *lines]), tuple(found))


def _options(row, fields: dict) -> tuple[list[str], list[str]]:
    """(their texts, what they are called)."""
    options = get_value(row, fields["options"])
    options = medmcqa_options(row) if options is None else options
    if options is None:
        raise missing(row, fields, "options", "options")
    return lettered(options, fields["options"])


def settle_options(placed: list[tuple[str, Case]], how=None, rename=None, order=()) -> Settled:
    """Of each case the one whose gold is a letter, or why there is none: an answer `2` is an option's text
    where all answers are texts of options, and its number where all of them can be that alone. Raises
    UserError where nothing shows what MedMCQA's numbers count from."""
    kinds = [kind for kind in ANSWERS if all(kind in dict(case.gold) for _, case in placed)]
    if kinds == ["number", "from 1"]:
        what = "`cop` is never 0 and never the number of the last option"
        mend = 'labels = { 1 = "A", ... } says which'
        raise UserError(f"{placed[0][0]}: {what}, so that it may count from 0 or from 1; {mend}")
    cases = []
    for _, case in placed:
        letters = sorted({letter for k, letter in case.gold if k in (kinds[:1] or ANSWERS)})
        known = f"its answer can be {' or '.join(letters)}"
        why = f'{known}; fields = {{ label = "..." }} names a field with the letter'
        cases.append(replace(case, gold=tuple(letters)) if len(letters) == 1 else why)
    most = max((len(options_of(case.input)) for _, case in placed), default=0)
    return Settled(cases, tuple(LETTERS[:most]))


def options_of(input: str) -> dict[str, str]:
    """{letter: text} of what take_options() wrote: the last lines of it, from an A on."""
    lines = input.split("\n")
    start = max((k for k, line in enumerate(lines) if line.startswith("A. ")), default=len(lines))
    return {line[0]: line[3:] for line in lines[start:]}


def read_option(answer: str, input: str, labels: list[str]) -> list[str]:
    """By its letter, both, or its text: as they are written, else but for capitals and a full stop. So `C` is
    the option C where another one's text is `c`."""
    options = options_of(input) if answer.strip() else {}
    for same in (plain, bare):
        for forms in (("{0}", "{0}.", "({0})", "{0})"), ("{0}. {1}", "({0}) {1}", "{0}) {1}"), ("{1}",)):
            spelled = {k: [same(form.format(k, text)) for form in forms] for k, text in options.items()}
            found = [k for k, spellings in spelled.items() if same(answer) in spellings]
            if len(found) == 1:
                return found
    raise Malformed(f"{answer!r} is none of the options")
