"""The Jinja that chat templates are written in: as transformers 5.23 sets it up, in a sandbox, since a
template is a program that somebody else wrote."""

import json
import re
from datetime import datetime
from functools import cache

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

BLANKS, SIGNS = r"\s", r"\s\"'\\&<>"  # what a template may strip; and what it may write otherwise


class Generation(Extension):
    """{% generation %} ... {% endgeneration %}, around what an assistant says: what is in it, as it is."""

    tags = frozenset({"generation"})

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.CallBlock(self.call_method("_said"), [], [], body).set_lineno(line)

    def _said(self, caller) -> str:
        return caller()


class Namespace(jinja2.utils.Namespace):
    """Jinja's, without names that begin with an underscore."""

    def __init__(*args, **kwargs):
        self, *args = args
        found = dict(*args, **kwargs)
        for name in found:
            _check(name)
        jinja2.utils.Namespace.__init__(self, found)

    def __setitem__(self, name, value):
        _check(name)
        super().__setitem__(name, value)


class Dict:
    """dict(), without what hangs on the class."""

    def __call__(self, *args, **kwargs):
        return dict(*args, **kwargs)

    def fromkeys(self, *args, **kwargs):
        return dict.fromkeys(*args, **kwargs)


def _check(name) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace has no name {name!r}")


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    """Jinja's own makes HTML of it."""
    how = {"ensure_ascii": ensure_ascii, "indent": indent, "separators": separators, "sort_keys": sort_keys}
    return json.dumps(value, **how)


def strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def environment() -> ImmutableSandboxedEnvironment:
    more = [Generation, loopcontrols]
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=more)
    made.filters["tojson"] = tojson
    made.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
    made.globals |= {"dict": Dict(), "namespace": Namespace}
    return made


@cache
def compiled(source: str) -> jinja2.Template:
    return environment().from_string(source)


@cache
def looked_for(source: str, apart: str = "") -> re.Pattern:
    """What a template may look for in texts: the strings that it compares, or hands to a method, a filter or
    a test; apart: and characters that it may treat apart. Of all SIGNS: and words without a sign."""
    places = environment().parse(source).find_all((nodes.Compare, nodes.Call, nodes.Filter, nodes.Test))
    places = (p for p in places if not isinstance(p, nodes.Call) or isinstance(p.node, nodes.Getattr))
    strings = {const.value for place in places for const in place.find_all(nodes.Const)}
    found = sorted((s for s in strings if isinstance(s, str) and len(s.strip()) > 1), key=len, reverse=True)
    found = [re.escape(s) for s in found if apart == SIGNS or not re.fullmatch(r"[\w ]+", s)]
    return re.compile("(" + "|".join(found + [f"[{apart}]"] * bool(apart) or ["(?!)"]) + ")")
