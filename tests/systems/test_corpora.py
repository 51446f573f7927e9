"""Corpora in the field's formats: every mention that a file has comes out with its own characters, or is
counted.

How many a file has is counted in its lines, by expressions that know nothing of the reader; what BioC and
PubTator files say is also asked of bioc, and what BIOES means of seqeval."""

import gzip
import json
import random
import re
import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanomed.errors import UserError
from nanomed.systems.tasks import sources
from nanomed.systems.tasks.corpora import corpus_rows
from nanomed.systems.tasks.entities import mentions, take_tagged
from nanomed.systems.tasks.forms import FIELDS
from nanomed.systems.tasks.offsets import COUNTED, Mention, tagged
from nanomed.text.lines import BadRow
from tests.conftest import assert_refused, run_script

ABSTRACT = "IL-2-driven breast and ovarian cancer, after BRCA1/2 loss (fièvre: 39 °C)."


def usable(row):
    """The row, as who reads it gets it."""
    if isinstance(row, BadRow):
        raise row
    return row


def rows(path):
    return [usable(row) for _, row in corpus_rows(str(path))]


def found(row):
    """(surface without blanks, type) of each tagged mention."""
    return [("".join(row["tokens"][a:b]), kind) for a, b, kind in mentions(row["tags"])]


def total(read):
    """Of all that is tagged or counted as left out."""
    left = sum((Counter(row["counts"]) for row in read), Counter())
    return sum(len(found(row)) for row in read) + sum(
        left[k] for k in ("discontinuous", "overlapping", "unplaced")
    )


# --- offsets ------------------------------------------------------------------------------------------------


@st.composite
def annotated(draw):
    """A text, and mentions anywhere in it: they overlap, begin within words, have blanks at their ends."""
    text = draw(st.text("ab1 -,\né²\u0301\u2009", min_size=1, max_size=40).filter(str.strip))
    places = st.integers(0, len(text) - 1).flatmap(
        lambda a: st.tuples(st.just(a), st.integers(a + 1, len(text)))
    )
    pieces = draw(st.lists(st.lists(places, min_size=1, max_size=2), max_size=6))
    kept = [p for p in pieces if "".join(text[a:b] for a, b in p).strip()]
    return text, [Mention(tuple(p), draw(st.sampled_from(["D", "G"])), None, "m") for p in kept]


@given(annotated())
@settings(max_examples=100, deadline=None)
def test_each_mention_is_tagged_with_its_own_characters_or_counted(case):
    text, given_ = case
    row = tagged(text, given_)
    assert "".join(row["tokens"]) == "".join(text.split())  # nothing of the text is lost
    counts = Counter(row["counts"])
    assert len(mentions(row["tags"])) == len(given_) - counts["discontinuous"] - counts["overlapping"]
    said = Counter(
        ("".join(text[a:b].split()), m.kind) for m in given_ for a, b in [(m.pieces[0][0], m.pieces[-1][1])]
    )
    if not counts["discontinuous"] and all(len(m.pieces) == 1 for m in given_):
        assert not Counter(found(row)) - said


def test_words_hang_on_the_text_alone_but_where_a_mention_parts_one():
    bare = tagged(ABSTRACT, [])["tokens"]
    assert bare[:7] == ["IL", "-", "2", "-", "driven", "breast", "and"] and "fièvre" in bare and "°" in bare
    within = Mention(((12, 37),), "D", "breast and ovarian cancer", "")
    assert tagged(ABSTRACT, [within])["tokens"] == bare
    parted = tagged(ABSTRACT, [Mention(((45, 49),), "G", "BRCA", "")])
    assert (
        parted["counts"] == {"parted": 1}
        and found(parted) == [("BRCA", "G")]
        and len(parted["tokens"]) == len(bare) + 1
    )


def test_what_iob2_cannot_say_is_counted():
    breast, ovarian = ((12, 18), (31, 37)), ((23, 37),)
    whole = Mention(((12, 37),), "D", None, "")
    row = tagged(
        ABSTRACT, [Mention(breast, "D", None, ""), Mention(ovarian, "D", None, ""), whole, whole], unplaced=2
    )
    assert found(row) == [("breastandovariancancer", "D")]
    assert row["counts"] == {"discontinuous": 1, "overlapping": 2, "unplaced": 2}
    assert found(tagged("breast\ncancer", [Mention(((0, 6), (7, 13)), "D", "breast cancer", "")])) == [
        ("breastcancer", "D")
    ]


@pytest.mark.parametrize(
    ("pieces", "surface", "words"),
    [
        (((0, 4),), "IL-3", "at 0 to 4 the text has 'IL-2', not 'IL-3'"),
        (((70, 90),), "x", "70 to 90 is no place"),
    ],
)
def test_a_mention_that_is_not_where_it_says_is_refused(pieces, surface, words):
    with pytest.raises(BadRow, match=re.escape(words)):
        tagged(ABSTRACT, [Mention(pieces, "G", surface, "line 3")])


# --- PubTator -----------------------------------------------------------------------------------------------

PUBTATOR = """1|t|Aspirin and fever. \n1|a|IL-2-driven BRCA1/2 breast and ovarian cancer.
1\t0\t7\tAspirin\tChemical\tD1
1\t12\t17\tfever\tDisease
1\t20\t24\tIL-2\tGene\t
1\t32\t36\tBRCA\tGene\t672
1\t40\t65\tbreast and ovarian cancer\tDisease\tD2|D3\tbreast cancer|ovarian cancer
1\t40\t65\tbreast and ovarian cancer\tDisease\tD4
1\tCID\tD1\tD2
2|t|No blank line\u2028before it.
2|a|
2\t0\t2\tNo\tOther\t-

3|t|Nothing here.
"""
MENTION = r"^\d+\t\d+\t\d+\t"


def test_pubtator_has_a_mention_a_line(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text(PUBTATOR, encoding="utf-8")
    one, two, three = read = rows(path)
    assert total(read) == len(re.findall(MENTION, PUBTATOR, re.M)) == 7
    genes = [("IL-2", "Gene"), ("BRCA", "Gene")]
    assert found(one) == [
        ("Aspirin", "Chemical"),
        ("fever", "Disease"),
        *genes,
        ("breastandovariancancer", "Disease"),
    ]
    assert one["counts"] == {"overlapping": 1, "parted": 1}
    assert found(two) == [("No", "Other")] and three["tokens"] == ["Nothing", "here", "."]
    (tmp_path / "corpus.pubtator.gz").write_bytes(gzip.compress(PUBTATOR.replace("\n", "\r\n").encode()))
    assert rows(tmp_path / "corpus.pubtator.gz") == read


def test_pubtator_is_what_bioc_reads_where_it_reads_all(tmp_path):
    pubtator, rng, lines = pytest.importorskip("bioc.pubtator"), random.Random(0), []
    for pmid in range(20):
        title, abstract = (
            " ".join(rng.choices(["α-fever", "IL-2", "of", "non-small", "x."], k=12)) for _ in "ta"
        )
        text = f"{title}\n{abstract}"
        places = [(m.start(), m.end()) for m in re.finditer(r"α-fever|IL-2|small", text)]
        lines += [f"{pmid}|t|{title}", f"{pmid}|a|{abstract}"]
        lines += [f"{pmid}\t{a}\t{b}\t{text[a:b]}\tD\t{k}" for k, (a, b) in enumerate(places)] + [""]
    (tmp_path / "p.txt").write_text("\n".join(lines), encoding="utf-8")
    documents = pubtator.loads("\n".join(lines))
    assert [found(row) for row in rows(tmp_path / "p.txt")] == [
        [(a.text, a.type) for a in d.annotations] for d in documents
    ]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("1\t0\t3\tAsp", "line 2: not a mention"),
        ("1\t0\t3\tAsp\t", "line 2: not a mention"),
        ("nothing", "line 2: not a mention"),
        ("2\t0\t3\tAsp\tX", "the document '2' without its text"),
        ("1\t1\t4\tAsp\tX", "line 2: at 1 to 4 the text has 'spi', not 'Asp'"),
    ],
)
def test_bad_lines_of_pubtator_are_named(tmp_path, line, words):
    (tmp_path / "p.txt").write_text(f"1|t|Aspirin\n{line}\n")
    with pytest.raises(BadRow, match=re.escape(words)):
        rows(tmp_path / "p.txt")


# --- brat ---------------------------------------------------------------------------------------------------

ANN = """T1\tDisease 0 6;19 25\tBreast cancer
T2\tDisease 11 25\tovarian cancer
T3\tSymptom 27 32\tfever
T4\tDisease 19 25\tcancer
N1\tReference T2 MESH:D010051\tOvarian Neoplasms
#1\tAnnotatorNotes T1\t
A1\tNegation T3
R1\tCauses Arg1:T2 Arg2:T3
E1\tEvent:T3 Theme:T1 Theme:T2
*\tEquiv T1 T2
"""


def brat(folder, end="\n", ann=ANN):
    folder.mkdir()
    (folder / "1.txt").write_bytes(f"Breast and{end}ovarian cancer, fever.".encode())
    (folder / "1.ann").write_text(ann)
    return folder


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_brat_has_a_mention_a_line_that_begins_with_t(tmp_path, end):
    folder = brat(tmp_path / "b", end)
    (folder / "0.txt").write_text("No fever.")
    (folder / "0.ann").write_text("")
    (folder / "2.txt").write_text("Never read.")
    read = rows(folder)
    assert total(read) == len(re.findall("^T", ANN, re.M)) == 4 and len(read) == 2
    assert found(read[1]) == [("ovariancancer", "Disease"), ("fever", "Symptom")] and not found(read[0])
    assert read[1]["counts"] == {"discontinuous": 1, "overlapping": 1}
    assert rows(folder / "1.ann") == read[1:]


def test_brats_offsets_may_count_a_line_end_as_two_characters(tmp_path):
    folder = brat(
        tmp_path / "b",
        "\r\n",
        "T1\tDisease 12 26\tovarian cancer\nT2\tDisease 0 10;12 19\tBreast and ovarian\n",
    )
    (row,) = rows(folder)
    assert row["counts"] == {"overlapping": 1} and found(row) == [("Breastandovarian", "Disease")]


def test_the_shared_tasks_files_are_brats(tmp_path):
    folder = brat(tmp_path / "b")
    (folder / "1.ann").rename(folder / "1.a1")
    (folder / "1.a2").write_text("T5\tEvent 7 10\tand\n")
    assert total(rows(folder)) == 5


@pytest.mark.parametrize(
    ("ann", "words"),
    [
        ("T1\tDisease 0\tBreast\n", "1.ann, line 1: must be ID, tab, type and offsets"),
        ("T1\tDisease 0 6\tbreasts\n", "1.ann, line 1: at 0 to 6 the text has 'Breast', not 'breasts'"),
        ("fever\n", "not brat's standoff: 'fever'"),
    ],
)
def test_bad_lines_of_brat_are_named(tmp_path, ann, words):
    with pytest.raises(BadRow, match=re.escape(words)):
        rows(brat(tmp_path / "b", ann=ann))


# --- BioC ---------------------------------------------------------------------------------------------------


def bioc_collection():
    """Annotations of passages, of a sentence and of the document; one without a place, one in two pieces."""
    bioc = pytest.importorskip("bioc")

    def annotation(number, text, *places, kind="Disease"):
        a = bioc.BioCAnnotation()
        a.id, a.text, a.infons = f"T{number}", text, {"type": kind}
        for start, end in places:
            a.add_location(bioc.BioCLocation(start, end - start))
        return a

    document, offset = bioc.BioCDocument(), 0
    document.id = "7"
    for text in ("Aspirin, α.", "", "Breast and ovarian cancer.", "A fever."):
        passage = bioc.BioCPassage()
        passage.offset = offset
        part = passage
        if text == "A fever.":
            part = bioc.BioCSentence()
            part.offset = offset
            passage.add_sentence(part)
            part.add_annotation(annotation(4, "fever", (offset + 2, offset + 7)))
        part.text = text
        offset += len(text) + 1
        document.add_passage(passage)
    document.passages[2].add_annotation(annotation(2, "ovarian cancer", (24, 38)))
    document.passages[2].add_annotation(annotation(3, "Breast cancer", (13, 19), (32, 38)))
    document.add_annotation(annotation(1, "Aspirin", (0, 7), kind="Chemical"))
    document.add_annotation(annotation(5, "Neoplasms"))
    collection = bioc.BioCCollection()
    collection.add_document(document)
    return collection


def test_bioc_has_a_mention_an_annotation(tmp_path):
    collection = bioc_collection()
    from bioc import biocjson, biocxml

    xml, plain = biocxml.dumps(collection), biocjson.dumps(collection)
    documents = json.loads(plain)["documents"]
    line = json.dumps(documents[0], ensure_ascii=False).replace("A fever", "A\u2028fever")
    files = {
        "separator.jsonl": f"{line}\n{line}\n",
        "c.xml": xml,
        "c.BioC.XML": xml,
        "c.json": plain,
        "pubtator3.json": json.dumps({"PubTator3": documents}),
        "pmc.json": json.dumps([json.loads(plain)]),
        "lines.jsonl": "\n".join(map(json.dumps, documents)),
        "lines.json": "\n".join(map(json.dumps, documents * 2)),
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        read = rows(tmp_path / name)
        assert total(read) == len(re.findall(r"<annotation|\"locations\"", text))
        assert [found(row) for row in read[:3]] == [
            [("Aspirin", "Chemical")],
            [("ovariancancer", "Disease")],
            [("fever", "Disease")],
        ]
        assert [row["counts"] for row in read[:3]] == [{"unplaced": 1}, {"discontinuous": 1}, {}]


@pytest.mark.parametrize("encode", [str, str.encode])
def test_biocs_offsets_count_characters_or_bytes(tmp_path, encode):
    """Bytes by its DTD and as bconv 1.2.1 writes them; characters in PubTator's exports and for bioc."""
    bioc, biocjson = pytest.importorskip("bioc"), pytest.importorskip("bioc.biocjson")
    texts, words = ("TNF-α and IL-1β", "β-cells, no fever."), r"[\w-]+"
    document, offset, collection = bioc.BioCDocument(), 0, bioc.BioCCollection()
    for text in texts:
        passage = bioc.BioCPassage()
        passage.offset, passage.text = offset, text
        document.add_passage(passage)
        for word in re.finditer(words, text):
            mention = bioc.BioCAnnotation()
            mention.id, mention.text, mention.infons = word[0], word[0], {"type": "Gene"}
            start, length = offset + len(encode(text[: word.start()])), len(encode(word[0]))
            mention.add_location(bioc.BioCLocation(start, length))
            document.add_annotation(mention)
        offset += len(encode(text)) + 1
    collection.add_document(document)
    file = tmp_path / "c.json"
    file.write_text(biocjson.dumps(collection), encoding="utf-8")
    assert [found(row) for row in rows(file)] == [
        [(word, "Gene") for word in re.findall(words, text)] for text in texts
    ]
    mention.locations[0].offset += 1
    file.write_text(biocjson.dumps(collection), encoding="utf-8")
    (_, first), (_, second) = corpus_rows(str(file))
    assert len(found(first)) == 3
    with pytest.raises(BadRow, match="annotation fever: "):
        usable(second)


def test_bad_bioc_is_named(tmp_path):
    collection = bioc_collection()
    from bioc import biocjson, biocxml

    def refused(error, words):
        with pytest.raises(error, match=re.escape(words)):
            rows(tmp_path / "c.xml")

    xml = biocxml.dumps(collection)
    for text, error, words in (
        (
            xml.replace('offset="0"', 'offset="1"'),
            BadRow,
            "annotation T1: at 1 to 8 the text has 'spirin,', not 'Aspirin'",
        ),
        (xml.replace('offset="0"', 'offset="900"'), BadRow, "annotation T1: 900 to 907 is no place"),
        (
            xml.replace('key="type"', 'key="kind"'),
            BadRow,
            "no infon `type` that names its type (infons: kind)",
        ),
        (xml[:-20], UserError, "not valid BioC"),
        ("<collection></collection>", UserError, "no BioC document"),
    ):
        (tmp_path / "c.xml").write_text(text, encoding="utf-8")
        refused(error, words)
    plain = biocjson.dumps(collection)
    for text, error, words in (
        (
            plain.replace('"sentences"', '"sentence"'),
            UserError,
            "not valid BioC, as the library bioc reads it .KeyError: 'sentences'",
        ),
        (plain.replace('"text": "Aspirin"', '"text": 5'), BadRow, "annotation T1: not as BioC has it"),
        (re.sub('"text": "Aspirin, [^"]*"', '"text": 5', plain), UserError, "not valid BioC"),
        (plain.replace('"offset": 0', '"offset": "0"'), UserError, "not valid BioC"),
        (plain.replace("Aspirin", "\xe9"), UserError, "iconv"),
    ):
        (tmp_path / "c.json").write_bytes(
            text.encode("latin-1" if error is UserError and words == "iconv" else "utf-8")
        )
        with pytest.raises(error, match=words):
            rows(tmp_path / "c.json")


def test_what_reads_bioc_is_named_where_it_is_missing(tmp_path, monkeypatch):
    for module in ("bioc", "bioc.biocxml"):
        monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / "c.xml").write_text("<collection></collection>")
    with pytest.raises(UserError, match=re.escape("bioc is not installed: pip install 'nanomed[corpora]'")):
        rows(tmp_path / "c.xml")


# --- a word a line ------------------------------------------------------------------------------------------

TAGS = """-DOCSTART- -X- -X- O

IL-2\tB-Gene
"\tO
# sent 2
#\tO
fever\tB-Disease

###MEDLINE:95369245

and\tO
high\tB-Disease
fever\tI-Disease


"""


def test_a_word_a_line(tmp_path):
    for name, text in {
        "a.tsv": TAGS,
        "a.txt": TAGS.replace("O\n", "O\t\n"),
        "a.conll": TAGS.replace("\t", " NN I-NP "),
        "b.iob2": TAGS[:-2],
    }.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        read = rows(tmp_path / name)
        assert [row["tokens"] for row in read] == [["IL-2", '"'], ["#", "fever"], ["and", "high", "fever"]]
        assert total(read) == len(re.findall(r"\bB-", text)) == 3


def test_a_comment_is_no_word_whatever_it_ends_in(tmp_path):
    """As conllu 6.0.0 and pyconll 3.3.1 take it. A word that begins with # has the columns of the others."""
    text = "# text = Loss of E-cadherin\n# E-cadherin\nE-cadherin\tB-Gene\n#\tO\n#5\tB-Gene\n"
    for name, lines in {"a.tsv": text, "a.conll": text.replace("\t", " NN ")}.items():
        (tmp_path / name).write_text(lines)
        (row,) = rows(tmp_path / name)
        assert row["tokens"] == ["E-cadherin", "#", "#5"] and row["tags"] == ["B-Gene", "O", "B-Gene"]


def test_a_column_that_counts_words_is_no_word(tmp_path, capsys):
    """As conllu 6.0.0 reads CoNLL-U: what has a range for a number is written as one, and 2.1 is not written. A
    sentence of the words 1 and 2 counts nothing beside others."""
    lines = [
        "1-2\tdel\t_\tO",
        "1\tde\tADP\tO",
        "2\tBRCA1\tPROPN\tB-Gene",
        "2.1\tis\tAUX\tO",
        "",
        "1\tFever\tNN\tO",
    ]
    (tmp_path / "a.conllu").write_text("# sent_id = 1\n" + "\n".join(lines))
    read = rows(tmp_path / "a.conllu")
    assert [row["tokens"] for row in read] == [["de", "BRCA1"], ["Fever"]]
    assert read[0]["tags"] == ["O", "B-Gene"] and "the second" in capsys.readouterr().err
    (tmp_path / "a.conll").write_text("1 CD O\n2 CD O\n\nFever NN B-Disease\n")
    assert [row["tokens"] for row in rows(tmp_path / "a.conll")] == [["1", "2"], ["Fever"]]
    (tmp_path / "a.conllu").write_text("\n".join([*lines, "", "1\tno\tDET\tO", "2\tcough"]))
    with pytest.raises(BadRow, match="line 9: must be word 2 of its sentence, not '2 cough'"):
        rows(tmp_path / "a.conllu")


def test_of_two_columns_of_tags_the_last_is_read_and_said(tmp_path, capsys):
    """The GENIA tagger's and CoNLL 2003's have chunks before the entities, GermEval's outer ones before inner."""
    for line, said in {"IL-2 IL-2 NN B-NP B-protein": True, "IL-2 IL-2 NN B-protein": False}.items():
        (tmp_path / f"{said}.conll").write_text(f"{line}\n{line.replace('NN', 'IN').replace('B-NP', 'O')}\n")
        assert rows(tmp_path / f"{said}.conll")[0]["tags"] == ["B-protein"] * 2
        assert ("its last two columns hold tags both" in capsys.readouterr().err) == said


def test_universal_dependencies_name_the_column_that_is_read(tmp_path):
    """https://universaldependencies.org/format.html: ten columns, the last of them MISC, `_` where there is
    nothing."""
    words = [("Fever", "PROPN", "_"), ("fell", "VERB", "SpaceAfter=No"), (".", "PUNCT", "_")]
    lines = [f"{k}\t{w}\t{w}\t{t}\t_\t_\t0\troot\t_\t{m}" for k, (w, t, m) in enumerate(words, 1)]
    (tmp_path / "a.conllu").write_text("# text = Fever fell.\n" + "\n".join(lines) + "\n\n")
    with pytest.raises(BadRow, match="line 2: .*CoNLL-U's ten columns.* is '_'; cut -f 1,2,N"):
        rows(tmp_path / "a.conllu")


def test_bad_lines_of_tags_are_named(tmp_path):
    (tmp_path / "a.tsv").write_text("fever\tO\nbad\n")
    with pytest.raises(BadRow, match="line 2: must be a word, a tab and a tag, not 'bad'"):
        rows(tmp_path / "a.tsv")
    (tmp_path / "a.tsv").write_bytes("fièvre\tO\n".encode("latin-1"))
    with pytest.raises(UserError, match="iconv -f WINDOWS-1252"):
        rows(tmp_path / "a.tsv")
    with pytest.raises(UserError, match="no such file"):
        rows(tmp_path / "b.conll")


# --- schemes of tags ----------------------------------------------------------------------------------------


def take(tags, type_=None, names=None):
    words = [f"w{k}" for k in range(len(tags))]
    return take_tagged({"tokens": words, "tags": tags}, FIELDS, {}, None, type_, names)


@given(st.lists(st.tuples(st.integers(1, 3), st.sampled_from(["O", "D", "G"])), min_size=1, max_size=8))
@settings(max_examples=50, deadline=None)
def test_schemes_that_mark_ends_are_read_as_seqeval_reads_them(spans):
    from seqeval.scheme import BILOU, IOBES, Entities

    for scheme, single, last in ((IOBES, "S", "E"), (BILOU, "U", "L")):
        tags = []
        for n, kind in spans:
            marks = [single] if n == 1 else ["B", *"I" * (n - 2), last]
            tags += ["O"] * n if kind == "O" else [f"{mark}-{kind}" for mark in marks]
        case = take(tags)
        assert case.counts == {}
        assert mentions(case.gold) == [(e.start, e.end, e.tag) for e in Entities([tags], scheme).entities[0]]


def test_what_goes_on_behind_an_end_begins_anew():
    case = take(["S-D", "E-D", "I-D", "O", "E-D", "M-D"])
    assert case.gold == ("B-D", "B-D", "B-D", "O", "B-D", "B-D") and case.counts["orphans"] == 4


def test_bare_tags_have_the_type_that_the_recipe_says():
    assert take(["B", "I", "O", "S", "E"], "Disease").gold == (
        "B-Disease",
        "I-Disease",
        "O",
        "B-Disease",
        "B-Disease",
    )
    for tags, type_, words in (
        (["O", "B"], None, 'type = "Disease"'),
        (["B-Gene"], "Disease", "leave out type = 'Disease'"),
    ):
        with pytest.raises(BadRow, match=words):
            take(tags, type_)


def test_numbers_have_the_names_of_the_recipe():
    for tags in ([0, 1, 2], [0.0, 1.0, 2.0], list("012")):
        assert take(tags, names=["O", "B-D", "I-D"]).gold == ("O", "B-D", "I-D")
        assert take(tags, "D", ["O", "B", "I"]).gold == ("O", "B-D", "I-D")
        with pytest.raises(BadRow, match="tags are numbers; tag_names"):
            take(tags)
    with pytest.raises(BadRow, match="the tag -100 is the number of none of 2 names"):
        take([-100], names=["O", "B-D"])


# --- a set of them ------------------------------------------------------------------------------------------


def build(home, train, test, lines="", flags=()):
    toml = (
        f'[c]\nform = "entities"\ntrain = ["{train}"]\ntest = ["{test}"]\ninstructions = ["List'
        f' them."]\n{lines}\n'
    )
    (home / "c.toml").write_text(toml)
    return run_script(home, "nanomed/tasks.py", "c.toml", "--from", home, "--out", home / "set", *flags)


def test_a_set_of_a_pubtator_file_and_a_folder_of_brat(tmp_path):
    (tmp_path / "p.txt").write_text(PUBTATOR, encoding="utf-8")
    brat(tmp_path / "b")
    done = build(tmp_path, "p.txt", "b")
    assert done.returncode == 0, done.stderr
    said = (
        "1 discontinuous mentions left out, 2 mentions that lie in, across or on a longer one left out, 1"
        " mentions that begin"
    )
    assert said in done.stdout
    made = json.loads((tmp_path / "set" / "tasks.json").read_text())["tasks"]["c"]
    assert made["discontinuous"] == {"train": 0, "test": 1} and made["overlapping"] == {"train": 1, "test": 1}
    assert made["labels"] == ["Chemical", "Disease", "Gene", "Other", "Symptom"] and set(COUNTED) < set(made)
    answer = json.loads((tmp_path / "set" / "c.test.jsonl").read_text())["output"]
    assert answer == "ovarian cancer : Disease\nfever : Symptom"


def test_a_bad_document_is_named_and_can_be_left_out(tmp_path):
    (tmp_path / "p.txt").write_text(PUBTATOR + "\n4|t|Bad.\n4\t1\t3\tBa\tX\n", encoding="utf-8")
    brat(tmp_path / "b")
    assert_refused(
        build(tmp_path, "p.txt", "b"), "p.txt, row 4, line 16: line 17: at 1 to 3", "--skip-bad-rows"
    )
    assert "1 bad rows left out" in build(tmp_path, "p.txt", "b", flags=["--skip-bad-rows"]).stdout
    assert_refused(build(tmp_path, "b", "d.conll"), "d.conll: no such file")


def test_what_a_data_set_calls_its_numbers(tmp_path):
    import datasets

    tags = datasets.List(datasets.ClassLabel(names=["O", "B-Disease", "I-Disease"]))
    features = datasets.Features({"tokens": datasets.List(datasets.Value("string")), "ner_tags": tags})
    for side, n in (("train", 4), ("test", 2)):
        sentences = {"tokens": [[side, f"fever{k}"] for k in range(n)], "ner_tags": [[0, 1]] * n}
        data = datasets.Dataset.from_dict(sentences, features)
        data.to_parquet(tmp_path / f"{side}.parquet")
        data.save_to_disk(tmp_path / side)
        data.to_json(tmp_path / f"{side}.jsonl")
    for end, lines in ((".parquet", ""), ("", ""), (".jsonl", 'tag_names = ["O", "B-Disease", "I-Disease"]')):
        done = build(tmp_path, f"train{end}", f"test{end}", lines)
        assert done.returncode == 0, done.stderr
        gold = [
            json.loads(line)["gold"] for line in (tmp_path / "set" / "c.test.jsonl").read_text().splitlines()
        ]
        assert gold == [["O", "B-Disease"]] * 2
    assert_refused(
        build(tmp_path, "train.jsonl", "test.jsonl"), "train.jsonl, row 1: tags are numbers; tag_names"
    )


def test_tag_names_and_type_go_with_tags(tmp_path):
    (tmp_path / "c.toml").write_text(
        '[c]\nform = "class"\ntrain = ["a"]\ntest = ["a"]\ninstructions = ["a"]\ntype = "D"\n'
    )
    with pytest.raises(UserError, match="type goes with entities, tags, not with class"):
        sources.read_sources(tmp_path / "c.toml")
