"""eval.py overlap: how far one side's texts repeat another's, by texts and by runs of words."""

from nanomed import flags
from nanomed.errors import UserError

HELP = "how far texts repeat those of another side: equal, nearly equal, runs of words"
COUNTS = ("exact_held", "near_held", "exact_within", "near_within")


# fmt: off
def add_flags(p) -> None:
    flags.add_files_flag(p, "--data", "texts to train on, say: " + flags.DATA_HELP, required=True)
    flags.add_files_flag(p, "--against", "texts to measure on", required=True)
    p.add_argument("--against-field", metavar="FIELD", help="of --against (default: --text-field)")
    p.add_argument("--threshold", type=flags.positive, default=0.8, metavar="J",
                   help="similarity from which two texts are near")
    p.add_argument("--ngram", type=flags.count, default=13, metavar="N",
                   help="words in a row that count as shared")
    p.add_argument("--limit", type=flags.count, metavar="N", help="take only the first N texts of each file")
    p.add_argument("--seed", type=flags.whole, default=0, help="of the permutations")
    flags.add_data_flags(p)
# fmt: on


def main(args) -> dict:
    from nanomed.evaluation.training_texts import say_overlap
    from nanomed.systems.overlap import near_duplicates
    from nanomed.text.ngrams import ngram_overlap
    from nanomed.text.rows import Field

    against_field = Field(args.against_field, "--against-field") if args.against_field else args.text_field
    texts, against = read(args.data, args.text_field, args), read(args.against, against_field, args)
    print(f"{len(texts):,} texts, against {len(against):,} of {', '.join(args.against)}")
    found = near_duplicates(texts, {"--against": against}, args.threshold, seed=args.seed % 2**32)
    print(*found.lines(), sep="\n")
    shared = ngram_overlap(against, texts, args.ngram)
    print(f"of --against, {say_overlap(shared)}")
    for m in shared["most"]:
        print(f"  {m['share']:.0%} of text {m['document'] + 1}: … {m['text']} …")
    examples = [dict(zip(("similarity", "text", "other", "where"), e, strict=True)) for e in found.examples]
    about = {"data": args.data, "against": args.against, "texts": len(texts), "against_texts": len(against)}
    about |= {"threshold": args.threshold} | {name: getattr(found, name) for name in COUNTS}
    return about | {"examples": examples, "ngrams": shared}


def read(names: list[str], field, args) -> list[str]:
    from nanomed.text.rows import full_texts

    texts = list(full_texts(names, field, args.limit, args.skip_bad_rows))
    if not texts:
        raise UserError(f"{', '.join(names)}: no texts there")
    return texts
