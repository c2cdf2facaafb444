"""Methods text of a run: the prose of its workflows, and the references that it cites."""

import re

from nipype.pipeline import engine as pe

CITED = re.compile(r"\[@(\w+)\]")


def collect_methods(workflow: pe.Workflow) -> str:
    """Collect the methods text of a workflow and of the workflows inside it.

    Parameters
    ----------
    workflow : Workflow
        Any workflow; the text stands in the `__desc__` of each builder's result.

    Returns
    -------
    str
        Each passage once, in the order in which the parts run.
    """
    passages = []
    for part in _walk(workflow):
        text = getattr(part, "__desc__", "").strip()
        if text and text not in passages:
            passages.append(text)
    return "\n\n".join(passages)


def write_boilerplate(workflow: pe.Workflow) -> tuple[str, str]:
    """Return the methods text of a run and the references that it cites.

    Parameters
    ----------
    workflow : Workflow
        The whole workflow of a run.

    Returns
    -------
    text : str
        Markdown to paste into a paper, with numbered references.
    bibtex : str
        The references alone, in the same order.
    """
    from mmln_pipeline.workflows.bibliography import format_references

    text = collect_methods(workflow)
    cited = list(dict.fromkeys(CITED.findall(text)))
    references, bibtex = format_references(cited)
    text = CITED.sub(lambda found: f"[{cited.index(found[1]) + 1}]", text)
    listed = "\n".join(f"{number}. {reference}" for number, reference in enumerate(references, start=1))
    return f"# Methods\n\n{text}\n\n# References\n\n{listed}\n", bibtex


def _walk(workflow: pe.Workflow):
    """Yield a workflow, then the workflows inside it in the order of their running."""
    yield workflow
    order = ("reference", "preproc", "to", "alignment", "registration", "evaluation", "derivatives", "fusion")
    inner = [node for node in workflow._graph.nodes() if isinstance(node, pe.Workflow)]
    rank = {name: place for place, name in enumerate(order)}
    for node in sorted(inner, key=lambda part: (rank.get(part.name.split("_")[0], -1), part.name)):
        yield from _walk(node)
