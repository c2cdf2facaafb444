"""Settings as Nipype traits: made from the fields of a dataclass."""

from nipype.interfaces.base import File, traits

from mmln_pipeline.machine.options import find_field


def make_trait(holder: type, name: str):
    """Return the trait of a setting, with its default, its bounds and its help.

    Parameters
    ----------
    holder : type
        A dataclass whose fields were made by `mmln_pipeline.machine.options.option`.
    name : str
        A field that takes text, words or whole numbers.
    """
    item = find_field(holder, name)
    option, facts = item.metadata["option"], {"usedefault": True}
    kinds = [traits.Enum(*option.words)] if option.words else []
    if option.lowest is not None:
        kinds.append(traits.Range(option.lowest, option.highest, item.default if not kinds else option.lowest))
    if option.free:
        kinds.insert(0, File(exists=True) if kinds else traits.Str(item.default))
    if len(kinds) > 1:
        return traits.Either(*kinds, default=item.default, desc=option.help, **facts)
    (trait,) = kinds
    return trait(desc=option.help, **facts)
