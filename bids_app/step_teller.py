"""The steps of a run: which there are, what they take, and what is told of each as it begins and ends."""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from nipype.interfaces.utility import IdentityInterface
from nipype.pipeline import engine as pe

from mmln_pipeline.bids_app.run_log import LOGGER
from mmln_pipeline.bids_app.signals import heed
from mmln_pipeline.machine.forecast import Forecast

SECONDS = {
    "load_template": 5.0,
    "brain_extraction": 6.0,
    "bias": 30.0,
    "affine_init": 70.0,
    "registration": 95.0,
    "conform": 3.0,
    "apply_mask": 6.0,
    "apply_atlas": 7.0,
    "normalize": 1.0,
    "plots": 20.0,
    "volumes": 0.5,
    "average": 80.0,
    "report": 4.0,
}
"""What a step takes, s (medians of three heads of 1 mm on one core of a busy machine; means of four brains).

A run learns its own, and how fast its machine is, as it goes.
"""


def count_steps(workflow: pe.Workflow) -> Counter[str]:
    """Count the nodes of a workflow that do something, by what they do."""
    nodes = (workflow.get_node(name) for name in workflow.list_node_names())
    return Counter(find_kind(node.name) for node in nodes if not isinstance(node.interface, IdentityInterface))


def find_kind(name: str) -> str:
    """Return what a node does: its name without a number; nodes with the name of a scan register it.

    Examples
    --------
    >>> find_kind("average_2"), find_kind("sub_01_wf"), find_kind("apply_mask")
    ('average', 'registration', 'apply_mask')
    """
    return "registration" if name.endswith("_wf") else re.sub(r"_\d+$", "", name)


class StepTeller:
    """What Nipype calls with each node that begins or ends: it tells the forecast, the log and whoever looks on.

    Parameters
    ----------
    forecast : Forecast
        Learns what steps take.
    say : callable
        Called with a line on each step that ran, but for those that only put files in their place.
    names : mapping of str to str
        The stem of each scan by the name of its workflow.
    workflow : Workflow
        That whose nodes run: of several templates, a step is told with its own.
    """

    def __init__(
        self, forecast: Forecast, say: Callable[[str], None], names: Mapping[str, str], workflow: pe.Workflow
    ) -> None:
        self.forecast, self.say, self.names = forecast, say, names
        self._templates = {_find_template(name) for name in workflow.list_node_names()} - {""}
        self._results: dict[str, float] = {}

    def __call__(self, node: pe.Node, status: str) -> None:
        heed()
        step, kind = self._describe(node), find_kind(node.name)
        if status == "start":
            self._results[node.fullname] = _age_of_result(node)
            self.forecast.start(step, kind)
            return
        is_failed, before = status == "exception", self._results.pop(node.fullname, 0.0)
        is_known = not is_failed and before > 0 and before == _age_of_result(node)
        took = self.forecast.end(step, kind, is_known)
        if took is None or (node.run_without_submitting and not is_failed):
            return
        text = f"{step}{' FAILED after' * is_failed} {took:.1f} s"
        LOGGER.log(LOGGER.level + 20 * is_failed, text)  # an error, or a note
        self.say(text)

    def _describe(self, node: pe.Node) -> str:
        """Name a step: the iteration, if there are any, the scan, the template of several, and what is done."""
        iteration = re.search(r"\.iteration_(\d+)_wf\.", node.fullname)
        scan = next((self.names[part] for part in node.fullname.split(".") if part in self.names), "")
        template = _find_template(node.fullname) if len(self._templates) > 1 else ""
        what = find_kind(node.name) if node.name in self.names else node.name
        parts = (iteration and f"iteration {iteration[1]}", scan, template and f"to {template}", what)
        return " ".join(filter(None, parts))


def _find_template(fullname: str) -> str:
    """Return the template of a node's workflow, empty for a step that no template has a part in.

    Examples
    --------
    >>> _find_template("mmln_wf.sub_01_wf.to_MNI_2_wf.registration_wf.registration")
    'MNI_2'
    """
    found = (part for part in fullname.split(".") if part.startswith("to_") and part.endswith("_wf"))
    return next(found, "").removeprefix("to_").removesuffix("_wf")


def _age_of_result(node: pe.Node) -> float:
    """Return when a node's result was written; 0 where there is none."""
    try:
        return (Path(node.output_dir()) / f"result_{node.name}.pklz").stat().st_mtime
    except OSError:
        return 0.0
