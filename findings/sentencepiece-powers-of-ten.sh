#!/usr/bin/env bash
# sentencepiece 0.2.2, a vocabulary trained with its defaults. One would expect a platelet count of 150 × 10⁹/L to have other ids than
# one of 150 × 109/L, or at least to come back. The default normalisation (nmt_nfkc) makes the digit of the
# exponent a plain one before anything is looked up: no byte fallback helps, and no unknown token shows it.
# Seen: the same ids; both decode to '150 × 109/L'; with normalization_rule_name="identity" they differ, and come back
set -euo pipefail
d=$(mktemp -d)
trap 'rm -rf "$d"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$d" sentencepiece==0.2.2
PYTHONPATH=$d python3 - <<'E'
import io

from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

texts = ["a platelet count of 150 × 10⁹/L", "of 109/L", "a count of 234 × 10⁵ and 678 per μL"] * 20


def trained(**how):
    model = io.BytesIO()
    how = {"vocab_size": 320, "model_type": "bpe", "byte_fallback": True, "minloglevel": 2} | how
    SentencePieceTrainer.train(sentence_iterator=iter(texts), model_writer=model, **how)
    return SentencePieceProcessor(model_proto=model.getvalue())


power, plain = "150 × 10⁹/L", "150 × 109/L"
for how in ({}, {"normalization_rule_name": "identity"}):
    of = trained(**how)
    same, back = of.encode(power) == of.encode(plain), of.decode(of.encode(power))
    print(how, "same ids:", same, "- comes back as", repr(back))
    assert (same, back) == ((False, power) if how else (True, plain))
E
