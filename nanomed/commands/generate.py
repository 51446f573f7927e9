"""eval.py generate: write on from one prompt, from a file of them, or in a chat."""

import sys

from nanomed import flags
from nanomed.errors import UserError

WRITE_IN_HELP = (
    "on a CPU, where each token reads all weights: stored reads those in 16 bits that fp16 holds as"
    " they are, as it does bf16's; fp16 rounds the others, half as much to read; hardly a token changes"
)
HELP = "write on from prompts or conversations; without any, a chat"


def add_flags(p) -> None:
    p.add_argument("--model", required=True, metavar="M", help=flags.MODEL_HELP)
    p.add_argument("--prompt", metavar="TEXT", help="one prompt; the completion is shown as it is written")
    p.add_argument("--prompts", metavar="FILE", help=flags.PROMPTS_HELP)
    flags.add_flags(p, flags.Rows, "skip_bad_rows")
    add_writing_flags(p)
    p.add_argument("--write-in", choices=("stored", "fp16"), default="stored", help=WRITE_IN_HELP)


def add_writing_flags(p) -> None:
    """How it writes, whatever it is asked."""
    p.add_argument("--template", metavar="NAME", help=flags.OWN_TEMPLATE_HELP)
    p.add_argument("--system", metavar="TEXT", help="how to answer: a system's turn where there is none")
    flags.add_sampling_flags(p, temperature=0.8, top_p=0.95)


def main(args) -> list[dict] | None:
    """[{prompt, completion, stopped}]; None if it was shown as it was written."""
    if args.prompt is not None and args.prompts:
        raise UserError("--prompt and --prompts: give one of them")
    chats = args.prompt is None and not args.prompts
    if chats and not sys.stdin.isatty():
        raise UserError("no --prompt and no --prompts, and no terminal to chat on")

    from nanomed.evaluation import measure
    from nanomed.evaluation.chat import Chat, talk
    from nanomed.evaluation.prompts import as_messages, read_prompts

    sampling, n = measure.sampling_of(args), args.max_new_tokens
    prompts = read_prompts(args.prompts, args.limit, args.skip_bad_rows)[0] if args.prompts else [args.prompt]
    o = measure.open_asked(args, writes=True)
    template, named = measure.choose_template(args.template, o)
    print(f"{o}; {sampling}" + (f"; template: {named}" if template else ""))
    if chats:
        return talk(Chat(o, template, sampling, n, args.seed, args.system))
    asked = put_all(args, o, prompts, template)
    markers = template.ends if template else ()
    if args.prompt is not None and not args.json:
        measure.write_on(o, asked[0], sampling, markers, n, args.seed)
        return None
    done = measure.complete(o, asked, sampling, markers, n, args.batch_size, args.seed)
    if args.prompts:
        for d in done:
            print(f"\n{d['prompt']}\n>>> {d['completion'].strip()}" + ("" if d["stopped"] else " ..."))
    else:
        print(done[0]["completion"])
    return [d | {"prompt": as_messages(said)} for d, said in zip(done, prompts, strict=True)]


def put_all(args, o, prompts, template) -> list:
    """What the model is asked, of texts and conversations; says what of them is not read as it may look."""
    from nanomed.evaluation.prompts import shown
    from nanomed.text import special
    from nanomed.text.conversations import begun, turns_of, unplaced

    special.say(special.report(o.tokenizer, map(shown, prompts)))
    conversations = [begun(turns_of(said), args.system) for said in prompts]
    for line in unplaced(conversations, template):
        print(line)
    return [put(args, o, turns, template, k) for k, turns in enumerate(conversations, 1)]


def put(args, o, turns, template, row: int):
    """What the model is asked: turns in the template. Raises UserError, with the row of --prompts, for those
    that leave no room for an answer."""
    from nanomed.evaluation.generate import room
    from nanomed.evaluation.prompts import ask

    try:
        asked = ask(o.tokenizer, turns, template)
        room(o.model.config, asked.ids, args.max_new_tokens)
    except UserError as e:
        place = f"{args.prompts}, {'prompt' if args.skip_bad_rows else 'row'} {row}: " if args.prompts else ""
        raise UserError(f"{place}{e}") from e
    return asked
