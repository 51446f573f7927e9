"""--sample-prompt: what a model that is being trained writes."""

from collections.abc import Callable

from nanomed.evaluation.generate import Ending, Sampling, generate, room
from nanomed.text.templates import Template
from nanomed.training.run import Setup

TOKENS = 40


def sampler(setup: Setup, template: Template | None = None) -> Callable | None:
    """A function of the model: how it goes on from --sample-prompt, put into the template, greedily.
    None if there is no such prompt; raises UserError if it does not fit."""
    asked = setup.settings.sample_prompt
    if not asked:
        return None
    ids = setup.tokenizer.prompt(template.ask(asked) if template else asked).tolist()
    steps = min(TOKENS, room(setup.config, ids, None))
    ending = Ending(setup.tokenizer, template.ends if template else ())

    def sample(model) -> str:
        (done,) = generate(model, [ids], steps, Sampling(), ending, setup.device, setup.settings.dtype)
        return f"{asked} >>> {done.text.strip()}" + ("" if done.stopped else " ...")

    return sample
