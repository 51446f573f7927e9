#!/usr/bin/env bash
# hl7apy 1.3.5. One would expect a message that is parsed and written again to be the same. Of the escapes in a text (HL7 v2.5, chapter 2.7)
# it knows those of delimiters and of highlights: those of a line break, \.br\, have their backslashes escaped once more, so that the next
# reader finds .br as letters of the report.
# Seen: 'No mass.\E\.br\E\A \T\ B \H\new\N\ ' written of 'No mass.\.br\A \T\ B \H\new\N\ '
set -euo pipefail
d=$(mktemp -d)
trap 'rm -rf "$d"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$d" hl7apy==1.3.5
PYTHONPATH=$d python3 - <<'E'
from hl7apy.parser import parse_message

text = r"No mass.\.br\A \T\ B \H\new\N\ "
message = r"MSH|^~\&|A|B|C|D|20260101||ORU^R01|1|P|2.5" + "\rPID|1||1\rOBR|1\rOBX|1|TX|a||" + text + "||||||F"
written = parse_message(message, find_groups=False).to_er7()
found = written.split("OBX|1|TX|a||")[1].split("||||||")[0]
print(text, "->", found)
assert written != message and found == text.replace("\\.br\\", "\\E\\.br\\E\\")
E
