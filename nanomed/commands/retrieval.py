"""Passages of a corpus before the questions of eval.py qa and choices."""

from nanomed import flags
from nanomed.errors import UserError

FIELDS = "text,context.contexts,context,CONTEXTS"
RETRIEVER_HELP = (
    "what fits: shared words (BM25), or the mean of the model's own last hidden states (computed once, and"
    " kept in the cache)"
)


def add_flags(p) -> None:
    help = "put the K passages of --corpus that fit a question best before it"
    p.add_argument("--retrieve", type=flags.count, metavar="K", help=help)
    flags.add_files_flag(p, "--corpus", "the passages: " + flags.DATA_HELP)
    p.add_argument("--corpus-field", default=FIELDS, metavar="FIELD", help="of a passage")
    p.add_argument("--retriever", choices=["bm25", "embeddings"], default="bm25", help=RETRIEVER_HELP)


def check_flags(args) -> None:
    if bool(getattr(args, "retrieve", None)) != bool(getattr(args, "corpus", None)):
        raise UserError("--retrieve and --corpus go together: how many passages, and of what")


def look_up(args, o, queries: list[str], golds: list[str | None]):
    """nanomed.systems.retrieve.look_up(), if the flags ask for passages; else None."""
    if not args.retrieve:
        return None
    from nanomed.systems import retrieve

    return retrieve.look_up(args, o, queries, golds)
