#!/usr/bin/env bash
# python-docx 1.2.0. A paragraph's text, one would expect, is what Word shows of it. Words that were put in while changes were tracked
# are not in it, nor what stands in a field of a form (a content control), nor are such runs in `runs`; nothing says so.
# Seen: 'The patient is allergic' where Word shows "The patient is not allergic to penicillin"
set -euo pipefail
d=$(mktemp -d)
trap 'rm -rf "$d"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$d" python-docx==1.2.0 lxml==6.1.3
PYTHONPATH=$d python3 - <<'E'
from io import BytesIO

import docx
from docx.oxml import parse_xml
from docx.oxml.ns import nsdecls

document = docx.Document()
paragraph = document.add_paragraph("The patient is ")
run = '<w:r><w:t xml:space="preserve">{}</w:t></w:r>'
put_in = f'<w:ins {nsdecls("w")} w:id="1" w:author="A">{run.format("not ")}</w:ins>'
control = f'<w:sdt {nsdecls("w")}><w:sdtContent>{run.format(" to penicillin")}</w:sdtContent></w:sdt>'
paragraph._p.append(parse_xml(put_in))
paragraph.add_run("allergic")
paragraph._p.append(parse_xml(control))
file = BytesIO()
document.save(file)
(read,) = docx.Document(file).paragraphs
there = "".join(t.text for t in read._p.iter("{*}t"))
print(repr(read.text), "of", repr(there))
assert read.text == "The patient is allergic" == "".join(run.text for run in read.runs)
assert there == "The patient is not allergic to penicillin"
E
