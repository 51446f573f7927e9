#!/usr/bin/env bash
# whisper-normalizer 0.1.15 (OpenAI's own rules, which transformers has too), jiwer 4.0.0. Word error rates of dictation are measured
# after its EnglishTextNormalizer, which one would expect to keep what was measured. Millimetres are a hesitation to it, as hmm and uh
# are, and are taken out, as is a minus; and two numbers side by side are one.
# Seen: 'a 5 nodule base excess 4' of a 5 mm nodule, base excess -4; 'take 12 times a day' of one two times a day; no error where a
# report lacks the unit and the sign
set -euo pipefail
d=$(mktemp -d)
trap 'rm -rf "$d"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$d" whisper-normalizer==0.1.15 jiwer==4.0.0
PYTHONPATH=$d python3 - <<'E'
import jiwer
from whisper_normalizer.english import EnglishTextNormalizer

normalise = EnglishTextNormalizer()
said, heard = "a 5 mm nodule, base excess -4", "a 5 nodule, base excess 4"
rate = jiwer.wer(normalise(said), normalise(heard))
tablets = normalise("take one two times a day")
print(normalise(said), "|", tablets, "| word error rate", rate, "without the normaliser", jiwer.wer(said, heard))
assert normalise(said) == "a 5 nodule base excess 4" and rate == 0 < jiwer.wer(said, heard)
assert tablets == "take 12 times a day" and normalise("an 8 cm nodule") == "an 8 cm nodule"
E
