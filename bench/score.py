"""Perplexity of real documents of unequal length: nanomed against lm-eval, and against the strided loop of
transformers' guide.

    python bench/score.py --data abstracts.jsonl [--model runs/models/smollm2-135m]

nanomed and lm-eval score each document by itself, in windows of the same length, so their losses must agree.
The guide's loop scores the documents as one text, a window at a time, half of each window twice: another
loss, and so none to compare. A unit is a token that is scored once."""

import contextlib
import io
import time

import sides
import torch

SIDES = ["nanomed", "lm-eval", "strided-loop"]


def main():
    p = sides.parser(__doc__, SIDES)
    p.add_argument("--data", required=True, help="documents, as eval.py ppl reads them")
    p.add_argument("--text-field", default="text")
    p.add_argument("--limit", type=int, default=48, help="documents (default: 48)")
    p.add_argument("--context", type=int, default=1024)
    p.add_argument("--batch-size", type=int, default=8)
    args = p.parse_args()
    pairs = {f"nanomed against {peer}": ("nanomed", peer) for peer in SIDES[1:]}
    sides.execute("score", "scored tokens", args, measure, pairs, same_loss=1e-2)


def measure(side: str, args) -> dict:
    from nanomed.text.rows import read_texts

    texts = [t for t in read_texts(args.data, args.text_field, args.limit, True) if t]
    run = {"nanomed": ours, "lm-eval": lm_eval, "strided-loop": strided_loop}[side](args, texts)
    seconds = []
    for _ in range(1 + args.repeats):
        start = time.perf_counter()
        nll, tokens = run()
        seconds.append(time.perf_counter() - start)
    loss = None if side == "strided-loop" else nll / tokens
    return {"per_s": [tokens / s for s in seconds[1:]], "warm_up_s": seconds[0], "loss": loss}


def ours(args, texts):
    from nanomed.evaluation.measure import encode, measure_ppl, open_model

    o = open_model(args.model, args.device, args.dtype, scores=True)
    corpus = encode(o, [args.data], args.text_field, args.limit, True)

    def run():
        r = measure_ppl(o, corpus, args.context, args.context // 2, args.batch_size)
        return r["loss"] * r["tokens_scored"], r["tokens_scored"]

    return run


def _theirs(args):
    import transformers

    from nanomed.precision import DTYPES

    transformers.logging.set_verbosity_error()
    model = (
        transformers.AutoModelForCausalLM.from_pretrained(args.model, dtype=DTYPES[args.dtype])
        .to(args.device)
        .eval()
    )
    return model, transformers.AutoTokenizer.from_pretrained(args.model)


def lm_eval(args, texts):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from nanomed.text.tokenizer import load_tokenizer

    model, tokenizer = _theirs(args)
    lm = HFLM(
        model,
        backend="causal",
        device=args.device,
        tokenizer=tokenizer,
        batch_size=args.batch_size,
        max_length=args.context,
        prefix_token_id=load_tokenizer(
            args.model
        ).lead,  # what a document begins with, the same on both sides
    )
    asked = [Instance("loglikelihood_rolling", {}, (t,), i) for i, t in enumerate(texts)]
    tokens = sum(len(tokenizer.encode(t)) for t in texts)

    def run():
        with contextlib.redirect_stderr(io.StringIO()):
            return -sum(lm.loglikelihood_rolling(asked, disable_tqdm=True)), tokens

    return run


def strided_loop(args, texts):
    """https://huggingface.co/docs/transformers/perplexity, with its window of the model's length and a stride
    of half of it."""
    model, tokenizer = _theirs(args)
    ids = tokenizer("\n\n".join(texts), return_tensors="pt").input_ids.to(args.device)

    @torch.no_grad()
    def run():
        nll, n, end_before = 0.0, 0, 0
        for begin in range(0, ids.size(1), args.context // 2):
            end = min(begin + args.context, ids.size(1))
            window = ids[:, begin:end]
            targets = window.clone()
            targets[:, : -(end - end_before)] = -100
            counted = int((targets != -100).sum()) - 1
            nll, n, end_before = nll + model(window, labels=targets).loss.item() * counted, n + counted, end
            if end == ids.size(1):
                break
        return nll, n

    return run


if __name__ == "__main__":
    main()
