"""Methods text of a run: the prose of its workflows, and the references that it cites."""

from nipype.pipeline import engine as pe

REFERENCES = {
    "jlf": "Wang et al. (2013). Multi-atlas segmentation with joint label fusion. *IEEE Trans. Pattern Anal. Mach. "
    "Intell.* 35(3). doi:10.1109/TPAMI.2012.143",
    "mmln": "Zheng et al. (2022). Multi-strategy mutual learning network for deformable medical image "
    "registration. *Neurocomputing* 501.",
    "n4": "Tustison et al. (2010). N4ITK: improved N3 bias correction. *IEEE Trans. Med. Imaging* 29(6). "
    "doi:10.1109/TMI.2010.2046908",
    "simpleitk": "Lowekamp et al. (2013). The design of SimpleITK. *Front. Neuroinform.* 7. "
    "doi:10.3389/fninf.2013.00045",
    "synthstrip": "Hoopes et al. (2022). SynthStrip: skull-stripping for any brain image. *NeuroImage* 260. "
    "doi:10.1016/j.neuroimage.2022.119474",
    "ndv": "Liu et al. (2024). On finite difference Jacobian computation in deformable image registration. "
    "*Int. J. Comput. Vis.*",
    "nipype": "Gorgolewski et al. (2011). Nipype: a flexible, lightweight and extensible neuroimaging data "
    "processing framework in Python. *Front. Neuroinform.* 5. doi:10.3389/fninf.2011.00013",
}


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


def write_boilerplate(workflow: pe.Workflow) -> str:
    """Return the methods text as Markdown, with numbered references.

    Parameters
    ----------
    workflow : Workflow
        The whole workflow of a run.

    Returns
    -------
    str
        Text to paste into a paper.
    """
    text = collect_methods(workflow)
    cited = sorted((key for key in REFERENCES if f"[@{key}]" in text), key=lambda key: text.index(f"[@{key}]"))
    for number, key in enumerate(cited, start=1):
        text = text.replace(f"[@{key}]", f"[{number}]")
    references = "\n".join(f"{number}. {REFERENCES[key]}" for number, key in enumerate(cited, start=1))
    return f"# Methods\n\n{text}\n\n# References\n\n{references}\n"


def _walk(workflow: pe.Workflow):
    """Yield a workflow, then the workflows inside it in the order of their running."""
    yield workflow
    order = ("reference", "preproc", "to", "alignment", "registration", "evaluation", "derivatives", "fusion")
    inner = [node for node in workflow._graph.nodes() if isinstance(node, pe.Workflow)]
    rank = {name: place for place, name in enumerate(order)}
    for node in sorted(inner, key=lambda part: (rank.get(part.name.split("_")[0], -1), part.name)):
        yield from _walk(node)
