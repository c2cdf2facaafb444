"""The references that a methods text cites: as lines of Markdown, and as BibTeX."""

from collections.abc import Sequence
from pathlib import Path

from pybtex.backends.markdown import Backend
from pybtex.database import BibliographyData, parse_file
from pybtex.style.formatting.unsrt import Style

REFERENCES = Path(__file__).with_name("references.bib")


class _Plain(Backend):
    """Markdown without backslashes: no reference has a character that means something else in it."""

    def format_str(self, text: str) -> str:
        return text


def format_references(keys: Sequence[str]) -> tuple[list[str], str]:
    """Format works by their keys in ``references.bib``.

    Parameters
    ----------
    keys : sequence of str
        In the order wanted.

    Returns
    -------
    lines : list of str
        One a work, Markdown.
    bibtex : str
        The same works.

    Raises
    ------
    KeyError
        If a key is unknown.
    """
    known = parse_file(REFERENCES).entries
    chosen = BibliographyData({key: known[key] for key in keys})
    formatted = Style(abbreviate_names=True).format_bibliography(chosen, keys)
    return [" ".join(entry.text.render(_Plain()).split()) for entry in formatted], chosen.to_string("bibtex")
