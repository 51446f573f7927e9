"""One spelling, to compare texts by, of characters that Unicode has twice: micro sign and mu, ligatures."""

import unicodedata

# In place or size lies their meaning: 10⁹ is not 109, nor 2½ 21/2, nor 5① 51. So CO₂ and CO2 stay two.
KEPT = ("<super>", "<sub>", "<fraction>", "<circle>")


class _Plain(dict):
    """What str.translate() makes of a character: its compatibility decomposition in full, but for those that
    are KEPT."""

    def __missing__(self, code: int) -> str:
        kind, *parts = unicodedata.decomposition(chr(code)).split() or [""]
        compatible = kind.startswith("<") and kind not in KEPT
        self[code] = "".join(chr(int(p, 16)) for p in parts).translate(self) if compatible else chr(code)
        return self[code]


_PLAIN = _Plain()


def nfkc(text: str) -> str:
    """The text in Normalization Form KC (Unicode Standard Annex 15), but for superscripts, subscripts,
    fractions and circled digits, which stay as they are: of those NFKC makes other numbers. The Greek mu for
    the micro sign (U+00B5), the letter for the ångström, ohm and kelvin signs, ASCII for fullwidth, letters
    for ligatures, a blank for a no-break one."""
    if unicodedata.is_normalized("NFKC", text):
        return text
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", text).translate(_PLAIN))
