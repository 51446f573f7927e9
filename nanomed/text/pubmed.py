"""PubMed's own exports as rows {pmid, title, abstract, text}: XML (its yearly files and what E-utilities
give) and MEDLINE (.nbib).

text is the title and the abstract, a line each; a section's label stands before it ("RESULTS: ..."), each
section a line."""

import re
from collections.abc import Iterator
from pathlib import Path

from nanomed.errors import UserError
from nanomed.optional import need
from nanomed.text.lines import BadRow, decode, note_once

ARTICLES = ("PubmedArticle", "PubmedBookArticle")
RAISED = dict(zip("0123456789+-−=()n", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻⁼⁽⁾ⁿ", strict=True))


def pubmed_rows(path: Path, f) -> list[dict]:
    """Each PMID once, where it stands last, since that is its latest version; without those that the same
    file deletes, and without records that have neither title nor abstract. The counts are said. Raises
    UserError for a file that is none of PubMed's."""
    found, records, deleted = {}, 0, set()
    for pmid, title, abstract in (_xml if ".xml" in map(str.lower, path.suffixes) else _medline)(path, f):
        if title is None:
            deleted.add(pmid)
            continue
        records += 1
        found.pop(pmid, None)
        text = "\n".join(filter(None, (title, abstract)))
        found[pmid] = {"pmid": pmid, "title": title, "abstract": abstract, "text": text}
    left = [row for pmid, row in found.items() if pmid not in deleted]
    rows = [row for row in left if row["text"]]
    counts = {
        "repeated (the last counts)": records - len(found),
        "deleted": len(found) - len(left),
        "without a text": len(left) - len(rows),
        "with a title alone": sum(not row["abstract"] for row in rows),
    }
    said = "".join(f", {n:,} {what}" for what, n in counts.items() if n)
    note_once(f"{path}: {records:,} PubMed records{said}")
    return rows


def _xml(path: Path, f) -> Iterator[tuple[str, str | None, str]]:
    """(PMID, title, abstract) of each record; (PMID, None, "") of each that is deleted."""
    etree = need("lxml.etree")
    how = {"resolve_entities": False, "remove_comments": True, "remove_pis": True}
    known = False
    try:
        for _, element in etree.iterparse(f, tag=(*ARTICLES, "DeleteCitation"), **how):
            known = True
            if element.tag == "DeleteCitation":
                yield from ((pmid.text.strip(), None, "") for pmid in element.iter("PMID"))
            else:
                title = next(element.iter("ArticleTitle"), element.find(".//BookTitle"))
                abstract = next(element.iter("Abstract"), ())
                sections = (_section(part) for part in abstract if part.tag == "AbstractText")
                yield element.findtext(".//PMID").strip(), _text(title), "\n".join(filter(None, sections))
            element.clear()
            while element.getprevious() is not None:  # what was read is forgotten
                del element.getparent()[0]
    except (etree.XMLSyntaxError, AttributeError) as e:  # AttributeError: no PMID
        raise UserError(f"{path}: truncated, corrupt or not PubMed's XML ({e})") from e
    if not known:
        what = "it is not PubMed's XML (PMC's full texts are another format)"
        raise UserError(f"{path}: no PubmedArticle in it, so {what}")


def _text(element) -> str:
    """All that stands in it, inline tags and formulas whole: <i>CYP<sub>2</sub>D6</i> is CYP2D6; but
    10<sup>9</sup> is 10⁹."""
    if element is None:
        return ""
    for raised in element.iter("sup"):
        if raised.text and RAISED.keys() >= set(raised.text):
            raised.text = "".join(map(RAISED.get, raised.text))
    return " ".join("".join(element.itertext()).split())


def _section(part) -> str:
    label, text = part.get("Label"), _text(part)
    return f"{label}: {text}" if label and text else text


def _medline(path: Path, f) -> Iterator[tuple[str, str, str]]:
    record: dict[str, str] = {}
    tag = ""
    for number, raw in enumerate(f, 1):
        try:
            line = decode(raw).rstrip()
        except BadRow as e:
            raise UserError(f"{path}, line {number}: {e}") from e
        if begins := re.match(r"([A-Z]{2,4}) *- (.*)", line):
            tag = begins[1]
            if tag == "PMID" and record:
                yield _record(path, record)
                record = {}
            record.setdefault(tag, begins[2])
        elif line.startswith("      ") and tag:
            record[tag] += " " + line.strip()
        elif line:
            what = "not MEDLINE, whose lines begin with a tag (PMID- , TI  - )"
            raise UserError(f"{path}, line {number}: {what}: {line[:40]!r}")
    if record:
        yield _record(path, record)


def _record(path: Path, record: dict[str, str]) -> tuple[str, str, str]:
    if "PMID" not in record:
        raise UserError(f"{path}: a record without PMID")
    return record["PMID"], record.get("TI") or record.get("BTI", ""), record.get("AB", "")
