"""config.json: the shape of a model, and a classifier's labels. What the models here would not honour is
refused."""

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Union, get_args, get_type_hints

from msgspec import Meta

from nanomed.errors import UserError, naming
from nanomed.files import read_object, typed
from nanomed.memory import in_words, physical
from nanomed.models import FAMILIES
from nanomed.models.classifier import PROBLEMS
from nanomed.models.gpt2 import ACTIVATIONS

# Keys of config.json that change nothing that is computed here: bookkeeping, generation, other heads.
INERT = set(
    """architectures bos_token_id eos_token_id pad_token_id dtype torch_dtype transformers_version use_cache
    output_attentions output_hidden_states output_past return_dict torchscript id2label label2id num_labels
    finetuning_task problem_type task_specific_params summary_type summary_use_proj summary_activation
    summary_proj_to_labels summary_first_dropout gradient_checkpointing use_bfloat16 tokenizer_class prefix
    max_length min_length do_sample early_stopping num_beams num_beam_groups temperature top_k top_p typical_p
    repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
    num_return_sequences output_scores return_dict_in_generate diversity_penalty forced_bos_token_id
    forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens
    begin_suppress_tokens decoder_start_token_id sep_token_id auto_map neftune_noise_alpha
    tokenizer_model_max_length transformers.js_config unsloth_fixed unsloth_version unk_token_id
    tf_legacy_loss quantization_config""".split()
)
# Keys that would change what is computed, with the only value that is supported.
FIXED = dict.fromkeys("add_cross_attention is_decoder is_encoder_decoder tie_encoder_decoder".split(), False)
FIXED |= {"cross_attention_hidden_size": None, "chunk_size_feed_forward": 0, "pruned_heads": {}}
# Of a model that sees pictures too: what it calls the language model in it, and what is not read.
PART, EYES = "language_model", ("vision_tower", "multi_modal_projector")
ACTIVATION = ("activation_function", "hidden_act", "hidden_activation")
MOST_LAYERS = 10_000


def read_config(directory: Path) -> tuple[dict, object]:
    """config.json as a dict, and the family's own Config made from it. Raises UserError for an unknown
    architecture, an unknown key (but one that begins with _), or a value that the model here would not
    honour."""
    path = Path(directory) / "config.json"
    raw = read_object(path)
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UserError(f"{path}: unknown architecture {model_type!r}; known: {', '.join(FAMILIES)}")
    family, raw = FAMILIES[model_type], language_part(raw, path)
    known, fixed = {f.name for f in fields(family.Config)}, FIXED | family.FIXED
    for key, value in raw.items():
        if key in fixed and value != fixed[key]:
            raise UserError(f"{path}: {key} = {value!r} is not supported")
        if key in ACTIVATION and value not in list(ACTIVATIONS):
            raise UserError(f"{path}: {key} = {value!r} is not supported; {', '.join(ACTIVATIONS)} are")
        if key not in known | INERT | family.INERT | fixed.keys() and not key.startswith("_"):
            raise UserError(f"{path}: {key!r} is not supported; if it changes nothing, remove it")
    hints, given = get_type_hints(family.Config), {k: v for k, v in raw.items() if k in known}
    for key, value in given.items():
        typed(_limited(key, hints[key], family), value, f"{path}: {key}")
    with naming(path, TypeError, ValueError, AttributeError, ArithmeticError):
        config = family.Config(**(family.DEFAULTS[model_type] | given | {"model_type": model_type}))
        layers, width, words = config.cache_shape[0], config.n_embd, config.vocab_size
        # Fewer weights than it has, at 4 bits: what is more than that is refused before anything is built.
        if layers > MOST_LAYERS or (layers * width + words) * width / 2 > physical():
            size = f"{layers:,} layers of width {width:,} over {words:,} words"
            raise UserError(f"{size} are no model for a machine of {in_words(physical())}")
        return raw, config


def language_part(raw: dict, path: Path) -> dict:
    """config.json of a language model; of one that sees pictures too (gemma3), that of the language model in
    it (gemma3_text), as which it is written again. What is said outside holds, where both say something."""
    kind = f"{raw.get('model_type')}_text"
    if kind not in FAMILIES:
        return raw
    inside = typed(dict, raw.get("text_config") or {}, f"{path}: text_config")
    outside = {k: v for k, v in raw.items() if k not in FAMILIES[kind].INERT}
    return inside | {"tie_word_embeddings": True} | outside | {"model_type": kind}


def _limited(key: str, hint, family):
    """The type of a field of Config, with the limits of its numbers: they are sizes, factors and
    probabilities, so none is negative, and sizes are at least 1."""
    least, below = int(key != "max_window_layers"), 1 if key in family.DROPOUTS else 1e38
    most = 2**20 if key in ("head_dim", "hidden_size") else 2**31  # a table as long as a head is made at once
    limits = {int: Annotated[int, Meta(ge=least, lt=most)], float: Annotated[float, Meta(ge=0, lt=below)]}
    return Union[tuple(limits.get(kind, kind) for kind in get_args(hint) or (hint,))]  # noqa: UP007


def labels_of(raw: dict, path: Path, rows: int | None = None) -> tuple[list[str], bool | None]:
    """(the labels in the order of their numbers, whether a text can have several; None: it is not said).

    Labels are id2label's, else LABEL_0, LABEL_1 and so on, two where nothing says how many. raw: config.json,
    which is at `path`; rows: of the head of a peft adapter, whose base may be a language model, or name other
    labels. Raises UserError for statements that differ, or a head that gives a number and no classes."""
    problem, said = raw.get("problem_type"), raw.get("num_labels", raw.get("_num_labels"))
    number = typed(int, 2 if said is None else said, f"{path}: num_labels")
    names = raw.get("id2label") or {}
    if rows is not None and (not isinstance(names, dict) or len(names) != rows):
        said, number, names = None, rows, {}
    names = names or {str(k): f"LABEL_{k}" for k in range(number)}
    names = typed(dict[str, str | int], names, f"{path}: id2label")
    missing = next((k for k in range(len(names)) if str(k) not in names), None)
    if missing is not None:
        raise UserError(f"{path}: id2label names {len(names)} labels, but none has the number {missing}")
    labels = [str(names[str(k)]) for k in range(len(names))]
    if said is not None and number != len(labels):
        raise UserError(f"{path}: num_labels = {number}, but id2label names {len(labels)}")
    if problem not in (None, *PROBLEMS) or len(labels) < 2:
        why = "its problem_type, or fewer than two labels"
        raise UserError(f"{path}: a regression ({why}): it gives a number and no classes")
    numbers = typed(dict[str, int], raw.get("label2id") or {}, f"{path}: label2id")
    for name, k in numbers.items():
        if name in labels and labels[k : k + 1] != [name]:
            mend = "correct the wrong one"
            raise UserError(f"{path}: id2label and label2id say different numbers of {name!r}; {mend}")
    if len(set(labels)) < len(labels):
        raise UserError(f"{path}: id2label gives two labels one name: {', '.join(labels)}")
    return labels, None if problem is None else problem == PROBLEMS[True]
