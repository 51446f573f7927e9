"""What a recipe says, tried before its first phase: on the recipe alone, and on the configuration and the
tokenizer of the model that it begins with. So no run of hours ends at what could have been known."""

from contextlib import chdir
from dataclasses import replace

from nanomed import hub
from nanomed.errors import UserError, naming
from nanomed.evaluation import benchmarks
from nanomed.evaluation.generate import room
from nanomed.evaluation.prompts import ask
from nanomed.evaluation.questions import official_ids
from nanomed.hub.adapters import check_size
from nanomed.models import FAMILIES
from nanomed.models.language_model import LanguageModel
from nanomed.models.lora import inject, resolve
from nanomed.precision import weightless
from nanomed.scripts import ROOT
from nanomed.systems.figures import ANSWERS, CLASSES, mistakes_of
from nanomed.systems.recipe import LABELLED, MODEL_OF, ROWS, Recipe
from nanomed.text import templates
from nanomed.text.names import find
from nanomed.text.tokenizer import load_tokenizer
from nanomed.training import run, settings
from nanomed.training.anchor import make_anchor
from nanomed.training.settings import Settings


def published(recipe: Recipe) -> None:
    """Refuse a published figure for which there will be none of ours, or none with its mistake. Raises
    UserError."""
    for p in recipe.published:
        where, (stage, _, key) = f"{recipe.path} [[published]]", p.ours.partition(".")
        if stage not in (stages := ["base", *(MODEL_OF[phase] for phase in recipe.phases)]):
            raise UserError(f"{where}: ours = {p.ours!r} is no figure; begin with {' or '.join(stages)}")
        found = set(CLASSES) if stage == MODEL_OF["classify"] else _measured(recipe, stage)
        if key not in found:
            there = f"{stage} has {', '.join(sorted(found))}"
            raise UserError(f"{where}: ours = {p.ours!r} is no figure; {there}")
        of, name = key.rpartition(".")[0], p.mistake
        if name is not None and f"{of}.also.{name}" not in found:
            there = mistakes_of(recipe, stage, of) or "none"
            raise UserError(f"{where}: mistake = {name!r}: of {stage}.{of} there are {', '.join(there)}")


def _measured(recipe: Recipe, stage: str) -> set[str]:
    """The figures of a language model, as paths."""
    found = {f"{name}.{key}" for name in recipe.texts for key in ("ppl", "bits_per_byte")}
    found |= {f"{name}.also.{m}" for name in recipe.texts for m in mistakes_of(recipe, stage, name)}
    found |= {f"answers.{key}" for key in (*ANSWERS.values(), "exact_match") if ROWS in recipe.data}
    return found | {f"choices.{key}" for key in CLASSES if recipe.choices}


def parsed(recipe: Recipe, phase: str, words: list[str]) -> Settings:
    """The settings of a phase, as its script takes them from the words of its command line. Raises UserError
    for those that it would refuse, and for any about rows, since this program writes them."""
    kind = settings.PHASES[phase]
    with chdir(ROOT):
        s = settings.parse(kind, None, words)
        with naming(f"{recipe.path} [{phase}]"):
            settings.check(s)
            for key, value in recipe.phases[phase].items():
                name, given = key.replace("-", "_"), "--" + key.replace("_", "-") in words
                files = name in kind.of_files() and ([value] if isinstance(value, str) else value)
                of_rows = name.endswith("_field") or name.startswith("label_")
                if of_rows or name == "data" or (files and given):
                    raise UserError(f"{key} is about texts, and those are of [data.NAME]; take it out")
                for file in files or ():
                    _ = file.startswith("hub:") or find(file)
    return s


def contexts(recipe: Recipe, given: int | None) -> None:
    """Raises UserError for a context that the model has not. given: in place of all of the recipe's."""
    positions = hub.read_config(hub.find(recipe.model).directory)[1].n_positions
    named = [recipe.context, *(section.get("context") for section in recipe.phases.values())]
    largest = given or max(n or 0 for n in named)
    if largest > positions:
        there = f"the {positions} positions of {recipe.model}"
        raise UserError(f"a context of {largest} is more than {there}; give --context {positions}")


def training(recipe: Recipe, phase: str, s: Settings, model: str) -> None:
    """Raises UserError for settings that a model cannot be trained with; model: that the first phase begins
    with."""
    with chdir(ROOT), naming(f"{recipe.path} [{phase}]"):
        setup = run.setup(replace(s, model=model))
        s = setup.settings
        with weightless():
            model = LanguageModel(FAMILIES[setup.config.model_type], setup.config)
        make_anchor(model, replace(s, l2_sp=s.l2_sp or s.ewc, ewc=0.0), None, setup.device)
        if s.lora:
            check_size(model, resolve(model, s.lora))
            inject(model, s.lora)


def prompts(recipe: Recipe, new_tokens: int) -> None:
    """Raises UserError for a prompt that would leave a model, before or after the instructions, no room for
    so many tokens."""
    source = hub.find(recipe.model)
    config = hub.read_config(source.directory)[1]
    tokenizer = load_tokenizer(source.tokenizer_directory, source.directory)
    named = templates.load_template(recipe.template)
    own = named if undecided(recipe) else templates.of_model(*source.places)
    for template in (None, own, named if "instruct" in recipe.phases else None):
        for prompt in recipe.prompts:
            with naming(f"{recipe.path} [system]: prompts: {prompt[:60]!r}"):
                room(config, ask(tokenizer, prompt, template).ids, new_tokens)


def undecided(recipe: Recipe) -> bool:
    """Whether the model has several chat templates, of which none is the default: the recipe's is taken."""
    try:
        templates.of_model(*hub.find(recipe.model, weights=False).places)
    except UserError:
        return True
    return False


def labelled(recipe: Recipe) -> None:
    """Raises UserError if the questions with given answers are none, or of another kind than `choices`."""
    if recipe.choices:
        benchmarks.read(recipe.data[LABELLED].files, recipe.choices, official_ids(), skip_bad=True)
