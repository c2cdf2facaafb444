"""What a run's settings mean on this machine: templates, weights, device, and what strips raw heads."""

from collections.abc import Mapping
from dataclasses import dataclass

from mmln_pipeline import __version__
from mmln_pipeline.bids_app.arguments import UsageError
from mmln_pipeline.bids_app.invocation import Config
from mmln_pipeline.bids_app.template_option import find_targets
from mmln_pipeline.derivatives import filenames
from mmln_pipeline.interfaces.brain_extraction import choose_stripper
from mmln_pipeline.machine.devices import check_device, resolve_device
from mmln_pipeline.weights import load_model, read_config
from mmln_pipeline.workflows import Provenance, Target


@dataclass(frozen=True)
class Method:
    """What a run's settings mean on this machine.

    Attributes
    ----------
    provenance : Provenance
        Names, links and checksums for the sidecars.
    targets : tuple of Target
        The templates and their labels.
    tables : mapping of str to str
        Numbers and names of the labels of each atlas that has a table, as the text of a TSV.
    device : str
        `cpu` or `cuda:N`; on other machines also `auto`, which is theirs to resolve, or `cuda`.
    stripper : str
        What strips raw heads: `synthstrip`, `atlas` or, where all images are stripped, `skip`.
    other_templates : tuple of str
        Names of those that the output directory holds results for besides.
    """

    provenance: Provenance
    targets: tuple[Target, ...]
    tables: Mapping[str, str]
    device: str
    stripper: str
    other_templates: tuple[str, ...] = ()

    @property
    def template(self) -> str:
        """Return the names of the templates as text."""
        return ", ".join(target.name for target in self.targets)

    @property
    def all_templates(self) -> str:
        """Return the names of the templates of the whole dataset as text."""
        names = {target.name for target in self.targets} | {*self.other_templates}
        return ", ".join(sorted(names)) if self.other_templates else self.template

    def apart(self, name: str) -> str:
        """Return how a file of the whole dataset is called: with the template where it is a further one."""
        (target, *others) = self.targets
        return filenames.apart(name, target.name) if target.spaced and not others else name


def prepare_method(config: Config, elsewhere: bool = False) -> Method:
    """Look up templates, weights, device and what strips raw heads.

    Parameters
    ----------
    config : Config
        Settings whose paths are checked.
    elsewhere : bool, default False
        Whether the work is done on other machines, whose devices are theirs to find.

    Returns
    -------
    Method

    Raises
    ------
    UsageError
        A template or the model is unknown or unreadable, mask or labels are not on their template's grid, or the
        device or SynthStrip is absent.
    """
    try:
        stripper = choose_stripper(config.skull_strip)
        device = check_device(config.device) if elsewhere else str(resolve_device(config.device))
        card = load_model(config.model, "cpu")[1]
    except (ValueError, OSError) as error:
        raise UsageError(str(error)) from error
    targets, tables = find_targets(config, read_config(config.model).grid)
    provenance = Provenance(
        template=targets[0].name,
        spatial_reference=targets[0].spatial_reference,
        links={"raw": config.bids_dir, **config.derivatives},
        model=card["name"],
        model_sha256=card["sha256"],
        model_license=card.get("license", ""),
        version=__version__,
        parameters={
            "init": config.init,
            "refine": config.refine,
            "topology": config.topology,
            "bias_correction": config.bias_correction,
            "random_seed": config.random_seed,
        },
    )
    return Method(provenance, targets, tables, device, stripper)
