"""The compared methods by their names, one file each; importing them loads nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmln_pipeline.machine.toml import to_dataclass
from mmln_pipeline.study.methods.ants import Elastic, SyN
from mmln_pipeline.study.methods.base import Budget, LearnedMethod, Method, Surroundings
from mmln_pipeline.study.methods.fireants import FireANTs
from mmln_pipeline.study.methods.greedy import Greedy
from mmln_pipeline.study.methods.initial import Initial
from mmln_pipeline.study.methods.lapirn import CIRDM, LapIRNMethod
from mmln_pipeline.study.methods.ours import MMLNMethod
from mmln_pipeline.study.methods.transmorph import TransMorphMethod
from mmln_pipeline.study.methods.vit_v_net import ViTVNetMethod
from mmln_pipeline.study.methods.voxelmorph import VoxelMorph

__all__ = ["METHODS", "Budget", "LearnedMethod", "Method", "Surroundings", "make_method"]

_KINDS: tuple[type[Method], ...] = (
    *(Initial, SyN, Elastic, Greedy, FireANTs),
    *(VoxelMorph, LapIRNMethod, CIRDM, ViTVNetMethod, TransMorphMethod, MMLNMethod),
)
METHODS = {kind.name: kind for kind in _KINDS}


def make_method(name: str, options: Mapping[str, Any], surroundings: Surroundings | None = None) -> Method:
    """Make a method from its name and options, as a row of a study's configuration has them.

    Parameters
    ----------
    name : str
        A key of `METHODS`.
    options : mapping
        The method's own; those that are absent get their defaults.
    surroundings : Surroundings, optional

    Returns
    -------
    Method

    Raises
    ------
    ValueError
        When the name or an option is unknown, or an option has a value that cannot be.
    """
    if name not in METHODS:
        raise ValueError(f"method: unknown name {name!r}; known are {', '.join(METHODS)}")
    kind = METHODS[name]
    return kind(to_dataclass(kind.Settings, options, name), surroundings or Surroundings())
