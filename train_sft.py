"""Phase 4, instruct: supervised fine-tuning on conversations, or instruction/response pairs, with all weights
or with LoRA.

python train_sft.py --model runs/adapted --data pairs.jsonl --out runs/instructed
python train_sft.py --model runs/adapted --data pairs.jsonl --template alpaca --lora-r 8 --out runs/lora
python train_sft.py --model runs/adapted --data pairs.jsonl --replay abstracts.jsonl --out runs/instructed"""

import shlex
from dataclasses import replace
from functools import partial

from nanomed.training.launch import execute
from nanomed.training.settings import Instruct, parse


def main():
    s = parse(Instruct, __doc__)
    if instruct(s):
        print(f"results in {s.out}; next: python eval.py generate --model {shlex.quote(str(s.out))}")


def instruct(given: Instruct) -> dict | None:
    """The whole run (nanomed.training.run.train says what is returned)."""
    # Here, so that --help and a wrong flag need not wait for PyTorch:
    from nanomed.evaluation.perplexity import answer_perplexity, perplexity
    from nanomed.evaluation.sample import sampler
    from nanomed.models.loss import clm_loss
    from nanomed.systems import overlap
    from nanomed.text import pairs, templates
    from nanomed.text.batch import Batches
    from nanomed.text.divide import divide
    from nanomed.text.examples import collate, encode_instructions, pack, supervise_prompts
    from nanomed.training import run

    setup = run.setup(given)
    template, name = templates.choose(given.template, *setup.source.places)
    s, tokenizer = replace(setup.settings, template=name), setup.tokenizer

    # Read: conversations, or rows of what is asked and answered.
    data = pairs.read_pairs(s, tokenizer, template)

    # Divide: what is held out is not trained on.
    near = overlap.finder(s.near_duplicates, s.seed)
    divided = divide(data.items(), data.excluded, data.given(), data.draw, near, setup.earlier)
    divided.say("rows", setup.model_name)
    training, answers = data.sides(divided)

    # Batch: rows to masked ids, and several of them, beside replayed text, to a row of a batch.
    encode = partial(encode_instructions, tokenizer=tokenizer, template=template, context=s.context)
    encoded, sets = encode(training), {name: encode(side) for name, side in answers.items()}
    pairs.check_fit(s.context, encoded, *sets.values())
    examples = supervise_prompts(encoded.examples) if s.train_on_prompt else encoded.examples
    examples = examples + data.replayed(len(examples), divided, setup.earlier, near)
    rows = [[e] for e in examples] if s.no_packing else pack(examples, s.context)
    batches = Batches(rows, collate, s.batch_size, s.grad_accum, s.seed)

    # Train, and measure the perplexity of the answers, or of the documents, that are held out.
    windows, how = (s.context, s.context // 2), (s.batch_size, setup.device, s.dtype)
    measures = {n: lambda m, side=side: answer_perplexity(m, side.examples, *how) for n, side in sets.items()}
    measures |= {n: lambda m, d=d: perplexity(m, [d], *windows, *how) for n, d in data.texts.items()}
    facts = data.facts(rows, encoded, sets) | divided.facts()
    hashes, what = data.hashes(template), data.in_words(facts, rows, encoded, sets)
    job = run.Job(batches, clm_loss, measures, divided.held, hashes, facts, what, template)
    job.sample = sampler(setup, template)
    return run.train(replace(setup, settings=s), job)


if __name__ == "__main__":
    execute(main)
