#!/usr/bin/env bash
# pubmed-parser 0.5.1, PubMed XML. One would expect the text of a title with all letters in it, without the tags. What stands inside
# markup that stands inside other markup is lost, in titles and abstracts, and words close up over the gap.
# Seen: 'Role of CYP in pain.' of "Role of <i>CYP<sub>2</sub>D6</i> in pain."
set -euo pipefail
d=$(mktemp -d)
trap 'rm -rf "$d"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$d" pubmed-parser==0.5.1 lxml==6.1.3 numpy==2.4.6
PYTHONPATH=$d python3 - "$d" <<'E'
import gzip
import sys

import pubmed_parser

markup = "<i>CYP<sub>2</sub>D6</i>"
xml = f"""<?xml version="1.0"?><PubmedArticleSet><PubmedArticle><MedlineCitation><PMID>1</PMID><Article>
<Journal><JournalIssue><PubDate><Year>2024</Year></PubDate></JournalIssue><Title>J</Title></Journal>
<ArticleTitle>Role of {markup} in pain.</ArticleTitle>
<Abstract><AbstractText>10<sup>6</sup> cells had {markup} alleles.</AbstractText></Abstract>
</Article></MedlineCitation></PubmedArticle></PubmedArticleSet>"""
path = f"{sys.argv[1]}/articles.xml.gz"
with gzip.open(path, "wt", encoding="utf-8") as f:
    f.write(xml)
(article,) = pubmed_parser.parse_medline_xml(path)
print(repr(article["title"]), repr(article["abstract"]))
assert article["title"] == "Role of CYP in pain."
assert article["abstract"] == "106 cells had CYP alleles."
E
