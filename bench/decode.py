"""Writing on from prompts, one at a time and eight together: nanomed against transformers' generate,
greedily.

    python bench/decode.py [--model runs/models/smollm2-135m]

generate runs with its weights in the dtype (not autocast, which would cast them at every step), once more in
fp32, and with a static cache, whose steps it compiles on a GPU, and on a CPU if it is told to. A prompt's own
time counts. What bounds it is reading the weights once a step: the share of the ceiling is of that. The
losses compared are those of the first prompt's tokens."""

import time

import sides
import torch

OURS = ("nanomed", "nanomed-fp16")  # as the weights are stored, and --write-in fp16
PEERS = ("generate", "generate-fp32", "generate-static", "generate-compiled")
SIDES = [f"{who} {B}" for B in (1, 8) for who in (*OURS, *PEERS)]


def main():
    p = sides.parser(__doc__, SIDES)
    p.add_argument("--prompt-tokens", type=int, default=64)
    p.add_argument("--new-tokens", type=int, default=96)
    args = p.parse_args()
    pairs = {
        f"batch {B}: {who} against {peer}": (f"{who} {B}", f"{peer} {B}")
        for B in (1, 8)
        for who in OURS
        for peer in PEERS
    }
    sides.execute("decode", "written tokens", args, measure, pairs, same_loss=1e-2, cost=cost)


def cost(side: str, args, result) -> dict:
    """Bytes of a token: the weights that it is multiplied with, in the dtype, shared by the rows of a
    batch."""
    model = sides.on_meta(args.model)
    weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))  # the head too
    width = 4 if args.dtype == "fp32" or side.startswith("generate-fp32") else 2
    return {"bytes": (result.get("width") or width) * weights / int(side.split()[1])}


@torch.no_grad()
def measure(side: str, args) -> dict:
    who, B = side.split()[0], int(side.split()[1])
    prompts = torch.randint(0, sides.on_meta(args.model).config.vocab_size, (B, args.prompt_tokens))
    write, loss, width = (ours if who in OURS else theirs)(who, args, prompts)
    seconds = []
    for _ in range(1 + args.repeats):
        start = time.perf_counter()
        written = write()
        seconds.append(time.perf_counter() - start)
        assert written == args.new_tokens, written
    found = {"per_s": [B * args.new_tokens / s for s in seconds[1:]], "warm_up_s": seconds[0], "loss": loss}
    return found | {"width": width}


def ours(who, args, prompts):
    from nanomed.evaluation.generate import Sampling, stream
    from nanomed.evaluation.measure import open_model
    from nanomed.models.loss import token_nll
    from nanomed.precision import autocast

    asked = who.partition("-")[2]
    o = open_model(args.model, args.device, args.dtype, write_in=asked or "stored")
    with autocast(o.device, o.dtype):
        x = o.model.backbone(prompts[:1].to(o.device))[0, :-1]
    loss = token_nll(x, o.model.lm_head.weight, prompts[0, 1:].to(o.device)).mean().item()

    def write():
        return len(
            list(
                stream(
                    o.model,
                    prompts.tolist(),
                    args.new_tokens,
                    Sampling(),
                    range(len(prompts)),
                    o.device,
                    o.dtype,
                )
            )
        )

    # rounded weights have another loss
    return write, None if asked else loss, o.model.writing_head and 2


def theirs(who, args, prompts):
    import transformers

    from nanomed.precision import DTYPES

    transformers.logging.set_verbosity_error()
    dtype = torch.float32 if who == "generate-fp32" else DTYPES[args.dtype]
    model = transformers.AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype).to(args.device).eval()
    prompts = prompts.to(args.device)
    loss = model(prompts[:1], labels=prompts[:1]).loss.item()
    how = {
        "max_new_tokens": args.new_tokens,
        "min_new_tokens": args.new_tokens,
        "do_sample": False,
        "pad_token_id": 0,
    }
    how |= {"cache_implementation": "static"} if who in ("generate-static", "generate-compiled") else {}
    if who == "generate-compiled":
        from transformers import CompileConfig

        how["compile_config"] = CompileConfig()
        how["compile_config"]._compile_all_devices = True  # else only where there is a GPU
    mask = torch.ones_like(prompts)
    return lambda: model.generate(prompts, attention_mask=mask, **how).size(1) - prompts.size(1), loss, None


if __name__ == "__main__":
    main()
