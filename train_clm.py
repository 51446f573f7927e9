"""Phase 2, adapt: continue a model's causal-LM training on (biomedical) text, with all weights or with LoRA.

python train_clm.py --model gpt2 --data abstracts.jsonl --out runs/adapted
python train_clm.py --model gpt2 --data pubmed.jsonl:0.9 --data general.jsonl:0.1 --lora-r 8 --out runs/mixed
python train_clm.py --model config.json --from-scratch --data general.jsonl --out runs/base"""

import shlex
from functools import partial

from nanomed.errors import UserError
from nanomed.training.launch import execute
from nanomed.training.settings import Adapt, parse


def main():
    given = parse(Adapt, __doc__)
    # From here on, so that --help and a wrong flag need not wait for PyTorch:
    from nanomed.evaluation.perplexity import perplexity
    from nanomed.evaluation.sample import sampler
    from nanomed.models.loss import clm_loss
    from nanomed.systems.overlap import repeated
    from nanomed.text import heldout, special, templates
    from nanomed.text.blocks import Mixture
    from nanomed.text.corpus import Texts, digests, encode_corpus, kept, split, without
    from nanomed.text.rows import named_sets, split_weight
    from nanomed.training import run

    setup = run.setup(given)
    plan = setup.settings

    def encode(names, limit=None):
        corpus = encode_corpus(names, setup.tokenizer, plan.text_field, limit, plan.skip_bad_rows)
        if corpus.bad_rows:
            print(f"{corpus.name}: {corpus.bad_rows} bad rows left out")
        return corpus

    # text -> tokens -> the documents of each side
    names, weights = zip(*map(split_weight, plan.data), strict=True)
    if any(weights) and not all(weights):
        raise UserError("--data: give every source a weight (D:0.9), or none")
    chosen = [encode(n, plan.limit).all() for n in (names if any(weights) else [names])]
    held, hashes = heldout.excluded(plan)
    hashes |= {s.corpus.name: s.corpus.sha256 for s in chosen}
    chosen, excluded = zip(*(without(s, held.texts()) for s in chosen), strict=True)
    if plan.val_data:
        validation = {name: [encode(files).all()] for name, files in named_sets(plan.val_data).items()}
        hashes |= {f"val-data {name}": s.corpus.sha256 for name, (s,) in validation.items()}
        training = chosen
        heldout.say_overlap(sum(without(s, held.texts())[1] for (s,) in validation.values()))
    else:
        training, drawn = zip(*(split(s, plan.val_fraction, plan.seed) for s in chosen), strict=True)
        drawn = [s for s in drawn if len(s.indices)]
        validation = {"validation": drawn} if drawn else {}
    held.documents |= digests([s for sides in validation.values() for s in sides])
    training, removed = zip(*(without(s, held.documents) for s in training), strict=True)
    run.say_removed(sum(excluded) + sum(removed))
    near = None
    if plan.near_duplicates:
        sides = {name: Texts(found, setup.tokenizer) for name, found in validation.items()}
        near = repeated(plan, held, Texts(training, setup.tokenizer), sides)
        held.documents |= digests(kept(training, near.near_removed_held))
        training = kept(training, ~near.removed)
    for selection in training:
        if not len(selection.indices):
            raise UserError(f"{selection.corpus.name}: no documents left to train on")
    run.say_earlier(setup, sum(without(s, setup.earlier.texts())[1] for s in training))
    general = run.general_stream(plan, encode, held, hashes)
    shares = [w or 1.0 for w in weights[: len(training)]]
    blocks = Mixture(training, shares, plan.context, plan.batch_size, plan.grad_accum, plan.seed)

    read = [selection.corpus for sides in (chosen, *validation.values()) for selection in sides]
    spelled = special.rows_of(c.special_tokens for c in {c.sha256: c for c in read}.values())
    facts = {
        "special_tokens": special.report(setup.tokenizer, spelled),
        "documents": sum(len(s.indices) for s in training),
        "val_documents": sum(len(s.indices) for sides in validation.values() for s in sides),
        "duplicates_removed": sum(excluded) + sum(removed),
        "near_duplicates_removed": int(near.removed.sum()) if near else 0,
    }
    what = (
        f"{facts['documents']:,} documents, {sum(blocks.counts) * plan.context:,} tokens an epoch in blocks"
        f" of {plan.context}{' (' + ' + '.join(f'{c:,}' for c in blocks.counts) + ' blocks)' if len(blocks.counts) > 1 else ''};"
        f" {facts['val_documents']:,} validation documents"
    )

    def evaluate(model, documents):
        result = perplexity(
            model, documents, plan.context, plan.context // 2, plan.batch_size, setup.device, plan.dtype
        )
        return {"loss": result["loss"], "ppl": result["ppl"]}

    measures = {name: partial(evaluate, documents=sides) for name, sides in validation.items()}
    own = templates.of_model(
        setup.source.adapter, setup.source.directory
    )  # an instructed model that reads on stays one
    if run.train(
        setup,
        run.Job(blocks, clm_loss, measures, held, hashes, facts, what, own, general, sample=sampler(setup)),
    ):
        print(
            f"results in {given.out}; next: python eval.py generate --model {shlex.quote(str(given.out))} --prompt"
            " 'The patients were'"
        )


if __name__ == "__main__":
    execute(main)
