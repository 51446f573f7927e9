"""What a model's generation_config.json asks for beside where an answer ends, which is all that is followed
here.

transformers' generate() follows it even where nobody asks for it; here settings decide, so what it asks for
is said."""

from pathlib import Path

from nanomed.files import read_object

# Keys that change what is written, and the values at which they change nothing (transformers 5.23,
# GenerationConfig).
NEUTRAL = dict.fromkeys(
    "max_new_tokens min_new_tokens bad_words_ids suppress_tokens begin_suppress_tokens sequence_bias"
    " stop_strings forced_bos_token_id forced_eos_token_id exponential_decay_length_penalty".split()
)
NEUTRAL |= {"max_length": 20, "min_length": 0, "do_sample": False, "num_beams": 1, "no_repeat_ngram_size": 0}
NEUTRAL |= {"repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0, "guidance_scale": 1.0}
# And those that count only where it draws.
NEUTRAL_DRAWN = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": None, "typical_p": 1.0}
NEUTRAL_DRAWN |= {"epsilon_cutoff": 0.0, "eta_cutoff": 0.0}


def asked_for(*directories: Path | None) -> dict:
    """{key: value} of the first directory's generation_config.json that there is, where a value changes what
    is written."""
    files = (d / "generation_config.json" for d in directories if d)
    file = next((f for f in files if f.exists()), None)
    config = read_object(file) if file else {}
    keys = NEUTRAL | (NEUTRAL_DRAWN if config.get("do_sample") else {})
    return {key: value for key in keys if (value := config.get(key)) not in (None, [], {}, keys[key])}


def say(asked: dict) -> None:
    """One line, if it asks for anything."""
    if asked:
        values = ", ".join(f"{key} {str(value)[:40]}" for key, value in asked.items())
        print(f"generation_config.json asks for {values}; here settings decide")
