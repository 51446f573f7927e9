"""Phase 4, instruct: supervised fine-tuning on instruction/response pairs, with all weights or with LoRA.

python train_sft.py --model runs/adapted --data pairs.jsonl --out runs/instructed
python train_sft.py --model runs/adapted --data pairs.jsonl --template alpaca --lora-r 8 --out runs/lora
python train_sft.py --model runs/adapted --data pairs.jsonl --replay abstracts.jsonl --out runs/instructed"""

import shlex
from dataclasses import replace
from functools import partial

from nanomed.errors import UserError
from nanomed.training.launch import execute
from nanomed.training.settings import Instruct, parse


def main():
    given = parse(Instruct, __doc__)
    # From here on, so that --help and a wrong flag need not wait for PyTorch:
    from nanomed.evaluation.perplexity import answer_perplexity, perplexity
    from nanomed.evaluation.sample import sampler
    from nanomed.models.loss import clm_loss
    from nanomed.systems.overlap import repeated
    from nanomed.text import heldout, instructions, special
    from nanomed.text.batch import Batches
    from nanomed.text.corpus import Texts, digests, encode_corpus, kept, without
    from nanomed.text.rows import named_sets
    from nanomed.text.templates import TEMPLATES, load_template, of_model
    from nanomed.training import run

    setup = run.setup(given)
    own = of_model(setup.source.adapter, setup.source.directory)
    template = load_template(given.template) if given.template else own or TEMPLATES["response"]
    name = given.template or ("the model's own" if own else "response")
    setup = replace(setup, settings=replace(setup.settings, template=name))
    plan = setup.settings
    fields = instructions.Fields(
        plan.instruction_field, plan.input_field, plan.response_field, plan.group_field
    )

    # rows -> the sides -> masked ids -> rows of a batch
    def read(side, names, limit=None):
        items, bad, sha = instructions.read_instructions(names, fields, limit, plan.skip_bad_rows)
        if bad:
            print(f"{' + '.join(names)}: {bad} bad rows left out")
        hashes[f"{side}: {' + '.join(names)}"] = sha
        return items

    def encode(names):
        return encode_corpus(names, setup.tokenizer, plan.text_field, None, plan.skip_bad_rows)

    def documents(side, names):
        corpus = encode(names)
        hashes[f"{side}: {corpus.name}"] = corpus.sha256
        return corpus.all()

    held, hashes = heldout.excluded(plan, fields)
    hashes["template"] = repr(template) + (" and continuations" if setup.tokenizer.codec.puts_blank else "")
    everything = read("data", plan.data, plan.limit)
    training, answers, texts = [item for item in everything if not held.has_row(item)], {}, {}
    if plan.val_data:
        for name, files in named_sets(plan.val_data).items():
            if instructions.holds_instructions(files[0], fields, plan.text_field, plan.skip_bad_rows):
                answers[name] = read(f"val-data {name}", files)
            else:
                texts[name] = documents(f"val-data {name}", files)
        overlap = sum(held.has_row(item) for side in answers.values() for item in side)
        heldout.say_overlap(overlap + sum(without(s, held.texts())[1] for s in texts.values()))
    elif plan.val_fraction and training:
        training, answers["validation"] = instructions.split_instructions(
            training, plan.val_fraction, plan.seed
        )
    drawn = 0 if plan.val_data else len(answers.get("validation", []))
    for side in answers.values():
        held.add_rows(side)
    held.documents |= digests(list(texts.values()))
    training = [item for item in training if not held.has_row(item)]
    removed = len(everything) - drawn - len(training)
    run.say_removed(removed, "rows")
    near = None
    if plan.near_duplicates:
        sides = {name: [item.text() for item in rows] for name, rows in answers.items()}
        sides |= {name: Texts([found], setup.tokenizer) for name, found in texts.items()}
        near = repeated(plan, held, [item.text() for item in training], sides)
        held.add_rows([item for item, out in zip(training, near.near_removed_held, strict=True) if out])
        training = [
            item
            for item, out in zip(training, near.removed, strict=True)
            if not out and not held.has_row(item)
        ]
    if not training:
        raise UserError(
            f"{', '.join(plan.data)}: no example left to train on: all rows are held out, or ask what one"
            " asks that is (--val-data, --val-fraction, --exclude)"
        )
    run.say_earlier(setup, sum(map(setup.earlier.has_row, training)))
    side = instructions.encode_instructions(training, setup.tokenizer, template, plan.context)
    sets = {
        name: instructions.encode_instructions(rs, setup.tokenizer, template, plan.context)
        for name, rs in answers.items()
    }
    chosen = side.examples
    for found in (side, *sets.values()):
        if not found.examples:
            raise UserError(f"no example fits --context {plan.context}{found}")
    answer_tokens = sum(len(e.ids) - e.start for e in chosen)
    if plan.train_on_prompt:
        chosen = instructions.supervise_prompts(chosen)
    replayed, beyond, spelled = [], "", [s.corpus.special_tokens for s in texts.values()]
    if plan.replay:
        everything_replayed = documents("replay", plan.replay)
        spelled.append(everything_replayed.corpus.special_tokens)
        found, kept_out = without(everything_replayed, held.texts() | setup.earlier.texts())
        if kept_out:
            print(
                f"{kept_out} documents that are held out, now or by an earlier phase, were taken out of what"
                " is replayed"
            )
        if near:
            (found,) = kept([found], ~repeated(plan, held, Texts([found], setup.tokenizer), sides).removed)
        limit = round(plan.replay_ratio * len(chosen))
        replayed = instructions.text_examples(found, plan.context, limit, plan.seed)
        if limit > len(found.indices):
            beyond = f" (of {limit:,} documents asked for, all that there are)"
    packed = (
        [[e] for e in chosen + replayed]
        if plan.no_packing
        else instructions.pack(chosen + replayed, plan.context)
    )
    batches = Batches(packed, instructions.collate, plan.batch_size, plan.grad_accum, plan.seed)

    general = run.general_stream(plan, encode, held, hashes)
    text_share = sum(len(e.ids) for e in replayed) / sum(len(e.ids) for e in chosen + replayed)
    rows = [
        item.text() for items in (everything, *(answers.values() if plan.val_data else ())) for item in items
    ]
    facts = {
        "special_tokens": special.report(
            setup.tokenizer, special.count(setup.tokenizer, rows) + special.rows_of(spelled)
        ),
        "template": plan.template,
        "examples": len(chosen),
        "val_examples": sum(len(found.examples) for found in sets.values()),
        "truncated": side.truncated,
        "dropped": side.dropped,
        "empty_responses": side.empty,
        "duplicates_removed": removed,
        "near_duplicates_removed": int(near.removed.sum()) if near else 0,
        "rows": len(packed),
        "filled": sum(len(e.ids) - 1 for e in chosen + replayed) / (len(packed) * plan.context),
    }
    what = (
        f"{len(chosen):,} examples{side}, {answer_tokens:,} tokens of answers; template {plan.template}; "
        + (
            f"{len(replayed):,} pieces of text replayed{beyond}, {text_share:.0%} of all tokens; "
            if replayed
            else ""
        )
        + f"{len(packed):,} rows of up to {plan.context} tokens, {facts['filled']:.0%} filled; "
        f"{facts['val_examples']:,} validation examples{''.join(map(str, sets.values()))}"
        + (f", {sum(len(s.indices) for s in texts.values()):,} validation documents" if texts else "")
    )

    def evaluate(model, name):
        if name in sets:
            result = answer_perplexity(model, sets[name].examples, plan.batch_size, setup.device, plan.dtype)
        else:
            result = perplexity(
                model,
                [texts[name]],
                plan.context,
                plan.context // 2,
                plan.batch_size,
                setup.device,
                plan.dtype,
            )
        return {"loss": result["loss"], "ppl": result["ppl"]}

    validation = {name: partial(evaluate, name=name) for name in [*sets, *texts]}
    job = run.Job(batches, clm_loss, validation, held, hashes, facts, what, template, general)
    job.sample = sampler(setup, template)
    if run.train(setup, job):
        print(f"results in {given.out}; next: python eval.py generate --model {shlex.quote(str(given.out))}")


if __name__ == "__main__":
    execute(main)
