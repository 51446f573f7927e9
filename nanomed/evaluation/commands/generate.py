"""eval.py generate: write on from one prompt, from a file of them, or in a small chat."""

import sys

from nanomed import flags
from nanomed.errors import UserError

HELP = "write on from prompts; without any, a small chat"


def add_flags(p) -> None:
    p.add_argument("--model", required=True, metavar="M", help=flags.MODEL_HELP)
    p.add_argument("--prompt", metavar="TEXT", help="one prompt; the completion is shown as it is written")
    p.add_argument("--prompts", metavar="FILE", help=flags.PROMPTS_HELP)
    p.add_argument("--template", metavar="NAME", help=flags.OWN_TEMPLATE_HELP)
    flags.add_sampling_flags(p, temperature=0.8, top_p=0.95)


def main(args) -> list[dict] | None:
    """[{prompt, completion, stopped}]; None if it was shown as it was written."""
    if args.prompt is not None and args.prompts:
        raise UserError("--prompt and --prompts: give one of them")
    chat = args.prompt is None and not args.prompts
    if chat and not sys.stdin.isatty():
        raise UserError("no --prompt and no --prompts, and no terminal to chat on")

    from nanomed.evaluation import measure
    from nanomed.evaluation.generate import room
    from nanomed.text import special

    sampling, n = measure.sampling_of(args), args.max_new_tokens
    texts = measure.read_prompts(args.prompts, args.limit)[0] if args.prompts else [args.prompt]
    o = measure.open_asked(args, writes=True)
    template, named = measure.choose_template(args.template, o)
    markers = template.ends if template else ()
    print(f"{o}; {sampling}" + (f"; template: {named}" if template else ""))

    def asked(text):
        return template.ask(text) if template else text

    if chat:
        return talk(
            lambda text, seed: measure.write_on(o, asked(text), sampling, markers, n, seed), args.seed
        )
    special.say(special.report_of(o.tokenizer, texts))
    if args.prompt is not None and not args.json:
        return measure.write_on(o, asked(args.prompt), sampling, markers, n, args.seed)
    prompts = [asked(text) for text in texts]
    for k, prompt in enumerate(prompts if args.prompts else (), 1):
        try:
            room(o.model.config, o.tokenizer.prompt(prompt).tolist(), n)
        except UserError as e:
            raise UserError(f"{args.prompts}, row {k}: {e}") from e
    done = measure.complete(o, prompts, sampling, markers, n, args.batch_size, args.seed)
    if args.prompts:
        for d in done:
            print(f"\n{d['prompt']}\n>>> {d['completion'].strip()}" + ("" if d["stopped"] else " ..."))
    else:
        print(done[0]["completion"])
    return [d | {"prompt": text} for d, text in zip(done, texts, strict=True)]


def talk(answer, seed: int) -> None:
    """Read a question and let answer(question, seed) write, until the input ends. Each question stands alone:
    the model does not see what was said before."""
    print("Type a question and press Enter; Ctrl-D ends.")
    while True:
        try:
            question = input("\n> ").strip()
        except EOFError:
            print()
            return
        if not question:
            continue
        try:
            answer(question, seed)
            seed += 1
        except UserError as e:  # too long a question is no reason to leave
            print(e)
