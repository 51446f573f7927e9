"""Annotated corpora in the field's own formats, as rows {tokens, tags, counts}.

tag files  a word a line and its tag, a blank line between sentences: CoNLL, BioBERT, JNLPBA
PubTator   ID|t|title, ID|a|abstract, then a mention a line
brat       a folder of .txt with an .ann (or .a1 and .a2) beside each
BioC       XML or JSON; a row a passage, or a sentence where passages have no text of their own

The file shows which. bioc reads BioC; it loses mentions of the others (findings/bioc-*.sh)."""

import json
import re
import zlib
from collections.abc import Iterator
from io import BytesIO
from itertools import accumulate, count
from pathlib import Path

from nanomed.errors import UserError
from nanomed.optional import need
from nanomed.systems.tasks.entities import TAG
from nanomed.systems.tasks.offsets import Mention, tagged
from nanomed.text.formats import open_unpacked
from nanomed.text.lines import BadRow, decode, note_once, row_or_bad
from nanomed.text.names import KINDS, PACKED, split_how
from nanomed.text.rows import NoField

ANNOTATED = (".ann", ".a1", ".a2")
NUMBER = re.compile(r" *[0-9]{1,9} *")
TEXT_BOUND = re.compile(r"T\S*\t(\S+) ([0-9]{1,9} [0-9]{1,9}(?:;[0-9]{1,9} [0-9]{1,9})*)(?:\t(.*))?")
SECTION = re.compile(r"([^|\t]+)\|([a-z])\|(.*)")
BETWEEN = re.compile(r"[0-9]+[-.][0-9]+")  # CoNLL-U's number of several words in one, or of an unwritten word


def corpus_rows(name: str) -> Iterator | None:
    """(where a row stands, the row or a BadRow), as formats.rows_of; None for a file of rows with
    fields. Raises UserError for a file that cannot be read at all."""
    path = Path(name)
    if name.startswith("hub:") or split_how(name)[1] is not None:
        return None
    if not path.exists():
        raise UserError(f"{name}: no such file")
    if path.is_dir() or path.suffix in ANNOTATED:
        return _brat(path) if _annotated(path) else None
    inner = Path(path.stem) if path.suffix.lower() in PACKED else path
    kind = KINDS.get(inner.suffix.lower())
    if kind == "parquet" or inner.suffix.lower() == ".csv":
        return None
    try:
        with open_unpacked(path) as f:
            raw = f.readline() if kind == "lines" else f.read()
            if kind in ("lines", "json"):
                is_bioc = b'"passages"' in raw and b'"infons"' in raw
                return _bioc(path, raw + f.read(), _json_documents) if is_bioc else None
        if raw.lstrip(b"\xef\xbb\xbf \r\n\t").startswith((b"<?xml", b"<!DOCTYPE", b"<collection")):
            return _bioc(path, raw, lambda raw: need("bioc.biocxml").load(BytesIO(raw)).documents)
        lines = decode(raw).replace("\r\n", "\n").split("\n")
    except (BadRow, EOFError, zlib.error, OSError) as e:
        raise UserError(f"{path}: {e}") from e
    first = next((line for line in lines if line.strip()), "")
    return _pubtator(lines) if SECTION.match(first) else _tag_lines(path, lines)


def _tag_lines(path: Path, lines: list[str]) -> Iterator:
    """The first column is the word, the last one the tag; blanks part columns where a line has no
    tab. Where the first counts each sentence's words, as in CoNLL-U, they are the second. Lines of
    documents' beginnings (-DOCSTART-) and comments (`#`, without a tag or in other columns than words
    have: `# text = Loss of E-cadherin`) are no words."""
    of_words = {_shape(line) for line in lines if line.strip() and line[0] != "#"}
    sentences = [[]]
    for number, line in enumerate(lines, 1):
        columns = _columns(line)
        ends = not line.strip() or columns[0] == "-DOCSTART-"
        if ends or (line[0] == "#" and not (TAG.fullmatch(columns[-1]) and _shape(line) in of_words)):
            sentences.append([])
        else:
            sentences[-1].append((number, columns))
    words = [[row for row in rows if not BETWEEN.fullmatch(row[1][0])] for rows in sentences]
    counting = [rows for rows in words if rows and not any(map(_miscounted, rows, count(1)))]
    counted = max(map(len, counting), default=0) > 1 and 2 * len(counting) > sum(map(bool, words))
    if counted:
        note_once(f"{path}: its first column counts the words, which are the second")
    before = {columns[-2] for rows in words for _, columns in rows if len(columns) > 2}
    if len(before) > 1 and all(map(TAG.fullmatch, before)):
        note_once(f"{path}: its last two columns hold tags both, of which the last are read")
    for rows in filter(None, words if counted else sentences):
        yield rows[0][0], row_or_bad(_sentence, rows, counted)


def _columns(line: str) -> list[str]:
    return [c.strip() for c in line.rstrip().split("\t")] if "\t" in line.rstrip() else line.split()


def _shape(line: str) -> tuple[bool, int]:
    """(whether tabs part its columns, how many they are)."""
    return "\t" in line.rstrip(), len(_columns(line))


def _miscounted(row: tuple[int, list[str]], k: int) -> bool:
    """Whether a line does not say that it is the word k of its sentence."""
    return len(row[1]) < 3 or row[1][0] != str(k)


def _sentence(rows: list[tuple[int, list[str]]], counted: bool) -> dict:
    word = int(counted)
    for k, (number, columns) in enumerate(rows, 1):
        if len(columns) < 2 or not columns[word] or not columns[-1]:
            raise BadRow(f"line {number}: must be a word, a tab and a tag, not {' '.join(columns)!r:.60}")
        if counted and len(columns) == 10 and not TAG.fullmatch(columns[-1]):
            what = f"the last of CoNLL-U's ten columns, which is read as the tag, is {columns[-1]!r}"
            raise NoField(f"line {number}: {what}; cut -f 1,2,N FILE > NEW keeps the words and column N")
        if counted and _miscounted((number, columns), k):
            raise BadRow(f"line {number}: must be word {k} of its sentence, not {' '.join(columns)!r:.60}")
    return {"tokens": [c[word] for _, c in rows], "tags": [c[-1] for _, c in rows], "counts": {}}


def _pubtator(lines: list[str]) -> Iterator:
    """A document begins where a title does, and after a blank line."""
    document = []
    for number, line in enumerate([*lines, "1|t|"], 1):
        section = SECTION.match(line)
        if document and (not line.strip() or (section and section[2] == "t")):
            yield document[0][0], row_or_bad(_pubtator_document, document)
            document = []
        if line.strip():
            document.append((number, line))


def _pubtator_document(lines: list[tuple[int, str]]) -> dict:
    """Its text is title and abstract with a line end between them, blanks and all; what is neither
    a section nor has two offsets is a relation."""
    sections, mentions = [], []
    for number, line in lines:
        columns, section = line.split("\t"), SECTION.match(line)
        if section:
            sections.append(section.groups())
            continue
        id, start, end, surface, kind = [*columns, "", "", "", "", ""][:5]
        if NUMBER.fullmatch(start) and NUMBER.fullmatch(end) and kind.strip():
            place = (int(start), int(end))
            mentions.append((id, Mention((place,), kind.strip(), surface, f"line {number}")))
        elif len(columns) < 4 or NUMBER.fullmatch(start):
            form = "a mention (ID, start, end, text, type, with tabs) nor a relation"
            raise BadRow(f"line {number}: not {form}: {line!r:.60}")
    for other, *_ in [*sections, *mentions]:
        if not sections or other != sections[0][0]:
            mend = "a title (ID|t|...) begins a document"
            raise BadRow(f"lines of the document {other!r} without its text; {mend}")
    return tagged("\n".join(text for *_, text in sections), [mention for _, mention in mentions])


def _annotated(path: Path) -> list[Path]:
    """The texts of a folder that have annotations beside them, or the one of a file of annotations."""
    found = path.iterdir() if path.is_dir() else [path]
    annotated = (p for p in found if p.suffix in ANNOTATED and not p.name.startswith("."))
    return sorted({p.with_suffix(".txt") for p in annotated})


def _brat(path: Path) -> Iterator:
    texts = _annotated(path)
    if without := len({*path.glob("*.txt")}.difference(texts)):
        mend = "an empty .ann says that there are none"
        note_once(f"{path}: {without:,} .txt files without annotations are not read; {mend}")
    return ((text.name, row_or_bad(_brat_document, text)) for text in texts)


def _brat_document(file: Path) -> dict:
    """Lines that begin with T are its mentions. Offsets count the text as it is, or with line ends
    of one character: whichever agrees with what the mentions say."""
    if not file.is_file():
        raise BadRow("annotations without this text beside them")
    text, mentions = decode(file.read_bytes()), []
    for beside in (file.with_suffix(s) for s in ANNOTATED):
        lines = decode(beside.read_bytes()).split("\n") if beside.is_file() else []
        for k, line in enumerate(lines, 1):
            if line[:1] == "T":
                mentions.append(_text_bound(line, f"{beside.name}, line {k}"))
            elif line.strip() and line[0] not in "REAMN#*":
                raise BadRow(f"{beside.name}: not brat's standoff: {line!r:.60}")
    row = row_or_bad(tagged, text, mentions)
    return tagged(text.replace("\r\n", "\n"), mentions) if isinstance(row, BadRow) else row


def _text_bound(line: str, where: str) -> Mention:
    """Of `T1 TAB Type 0 5;8 12 TAB text`."""
    match = TEXT_BOUND.fullmatch(line.rstrip("\r"))
    if not match:
        raise BadRow(f"{where}: must be ID, tab, type and offsets, tab, text: {line!r:.60}")
    pieces = [piece.split() for piece in match[2].split(";")]
    return Mention(tuple((int(a), int(b)) for a, b in pieces), match[1], match[3], where)


def _bioc(path: Path, raw: bytes, parse) -> Iterator:
    try:
        found = [(document.id, list(_passages(document))) for document in parse(raw)]
    except (SyntaxError, ValueError, RecursionError, TypeError, KeyError, AttributeError, BadRow) as e:
        why = f"{type(e).__name__}: {e}"
        raise UserError(f"{path}: not valid BioC, as the library bioc reads it ({why})") from e
    if not found:
        raise UserError(f"{path}: no BioC document there")
    for name, passages in found:
        yield from ((f"document {name}, passage {k}", row) for k, row in enumerate(passages, 1))


def _passages(document) -> list:
    """The row of each passage, or a BadRow. Offsets count characters, as in PubTator's exports and
    for the library bioc, or bytes, as BioC's DTD has it and bconv 1.2 writes them: whichever agrees
    better with what the document's mentions say."""
    ways = ([row_or_bad(_passage, *u, size) for u in _units(document, size)] for size in (len, _in_bytes))
    return min(ways, key=lambda rows: sum(isinstance(row, BadRow) for row in rows))


def _in_bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _units(document, size) -> list[tuple[int, str, list]]:
    """(offset, text, mentions that lie in it, wherever in the document they are listed) of each
    passage. What lies in none, or has no place, is of the first. size: of a text, as offsets count."""
    annotations, units = list(document.annotations), []
    for passage in document.passages:
        parts = [passage] if passage.text else passage.sentences
        units += [(part.offset, part.text, []) for part in parts if part.text]
        annotations += [a for part in (passage, *passage.sentences) for a in part.annotations]
    units = units or [(0, "", [])] * bool(annotations)
    for annotation in annotations:
        ends = [(place.offset, place.end) for place in annotation.locations]
        inside = (u[2] for u in units if ends and all(u[0] <= a and b <= u[0] + size(u[1]) for a, b in ends))
        next(inside, units[0][2]).append(annotation)
    return units


def _passage(offset: int, text: str, annotations: list, size) -> dict:
    mentions, where = [], "its text"
    try:
        ends = accumulate(map(size, text), initial=0)
        characters = {end: k for k, end in enumerate(ends)}  # before an offset within the text
        for annotation in (a for a in annotations if a.locations):
            kind, where = annotation.infons.get("type"), f"annotation {annotation.id}"
            if not kind:
                there = ", ".join(annotation.infons)
                raise BadRow(f"{where}: no infon `type` that names its type (infons: {there})")
            places = [(place.offset - offset, place.end - offset) for place in annotation.locations]
            pieces = tuple((characters.get(a, a), characters.get(b, b)) for a, b in places)
            mentions.append(Mention(pieces, kind, annotation.text, where))
        return tagged(text, mentions, unplaced=len(annotations) - len(mentions))
    except (TypeError, AttributeError) as e:  # JSON may hold anything
        raise BadRow(f"{where}: not as BioC has it ({e})") from e


def _json_documents(raw: bytes) -> list:
    """A collection, a list of them, or documents: under PubTator 3's own key, or one a line."""
    biocjson = need("bioc.biocjson")
    try:
        found = [json.loads(decode(raw))]
    except ValueError:
        found = [json.loads(line) for line in decode(raw).split("\n") if line.strip()]
    documents = []
    while found:
        value = found.pop(0)
        if isinstance(value, dict) and "passages" in value:
            documents.append(biocjson.fromJSON(value, "BioCDocument"))
        elif isinstance(value, dict | list):
            inner = value if isinstance(value, list) else [v for v in value.values() if isinstance(v, list)]
            found = [*inner, *found]
    return documents
