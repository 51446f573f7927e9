"""Phase 2, adapt: continue a model's causal-LM training on (biomedical) text, with all weights or with LoRA.

python train_clm.py --model gpt2 --data abstracts.jsonl --out runs/adapted
python train_clm.py --model gpt2 --data pubmed.jsonl:0.9 --data general.jsonl:0.1 --lora-r 8 --out runs/mixed
python train_clm.py --model shape --from-scratch --data general.jsonl --out runs/base"""

import shlex

from nanomed.training.launch import execute
from nanomed.training.settings import Adapt, parse


def main():
    s = parse(Adapt, __doc__)
    if adapt(s):
        ask = f"--model {shlex.quote(str(s.out))} --prompt 'The patients were'"
        print(f"results in {s.out}; next: python eval.py generate {ask}")


def adapt(given: Adapt) -> dict | None:
    """The whole run (nanomed.training.run.train says what is returned)."""
    # Here, so that --help and a wrong flag need not wait for PyTorch:
    from nanomed.evaluation.perplexity import perplexity
    from nanomed.evaluation.sample import sampler
    from nanomed.models.loss import clm_loss
    from nanomed.systems import overlap
    from nanomed.text import templates
    from nanomed.text.blocks import Mixture
    from nanomed.text.divide import divide
    from nanomed.text.documents import read_documents
    from nanomed.training import run

    setup = run.setup(given)
    s = setup.settings

    # Read: texts to tokens.
    data = read_documents(s, setup.tokenizer)

    # Divide: what is held out is not trained on.
    near = overlap.finder(s.near_duplicates, s.seed)
    divided = divide(data.items(), data.excluded, data.given(), data.draw, near, setup.earlier)
    divided.say("documents", setup.model_name)
    training, validation = data.sides(divided)

    # Batch: the documents one after another, cut into blocks of the context.
    blocks = Mixture(training, data.weights, s.context, s.batch_size, s.grad_accum, s.seed)

    # Train, and measure the perplexity of what is held out.
    how = s.context, s.context // 2, s.batch_size, setup.device, s.dtype
    measures = {n: lambda m, side=side: perplexity(m, side, *how) for n, side in validation.items()}
    facts = data.facts(training, validation) | divided.facts()
    what = f"{facts['documents']:,} documents, {blocks}; {facts['val_documents']:,} validation documents"
    job = run.Job(blocks, clm_loss, measures, divided.held, data.hashes, facts, what)
    job.template = templates.instructed_with(*setup.source.places)  # such a model stays one
    job.sample = sampler(setup)
    return run.train(setup, job)


if __name__ == "__main__":
    execute(main)
