"""Which network do the names in a file belong to? For the message that refuses weights of another one."""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeVar

Value = TypeVar("Value")


class Family(NamedTuple):
    """Networks whose weights have names of one kind."""

    title: str
    unit: str  # a name that each of the family's units has once, as a regular expression
    options: dict[int, str]  # `backbone=` by the number of units
    mark: str = ""  # the end of a name that the network has besides, where the units' could be another's
    renamed: Mapping[str, str] = {}  # its names, as regular expressions → those of the network that takes its weights


# A-SKD's network is IResNet with CBAM under names of IR's kind (gist-ailab/teaching-where-to-look, model/backbone.py).
_ASKD = {
    r"(layer\d\.\d+)\.res_layer\.0\.": r"\1.bn1.",
    r"(layer\d\.\d+)\.res_layer\.1\.": r"\1.conv1.",
    r"(layer\d\.\d+)\.res_layer\.2\.": r"\1.bn2.",
    r"(layer\d\.\d+)\.res_layer\.3\.": r"\1.prelu.",
    r"(layer\d\.\d+)\.res_layer\.4\.": r"\1.conv2.",
    r"(layer\d\.\d+)\.res_layer\.5\.": r"\1.bn3.",
    r"(layer\d\.\d+)\.shortcut_layer\.": r"\1.downsample.",
    r"(layer\d\.\d+)\.channel_layer\.shared_mlp\.": r"\1.attention.channel.mlp.",
    r"(layer\d\.\d+)\.spatial_layer\.": r"\1.attention.spatial.",
    r"input_layer\.0\.": "conv1.",
    r"input_layer\.1\.": "bn1.",
    r"input_layer\.2\.": "prelu.",
    r"output_layer\.0\.": "bn2.",
    r"output_layer\.3\.": "fc.",
    r"output_layer\.4\.": "features.",
}

# More special ones first: IR-SE has all names of IR. What no option can take is here to be told what it is.
FAMILIES = (
    Family(
        "IResNet (InsightFace)",
        r"layer[1-4]\.\d+\.prelu\.weight",
        {8: "r18", 16: "r34", 24: "r50", 49: "r100", 92: "r200"},
    ),
    Family("IR-SE", r"body\.\d+\.res_layer\.se_block\.fc1\.weight", {24: "ir_se_50", 49: "ir_se_101"}),
    Family("IR", r"body\.\d+\.res_layer\.5\.running_mean", {24: "ir_50", 49: "ir_101"}),
    Family("older IR (no batch norm before PReLU)", r"body\.\d+\.res_layer\.4\.running_mean", {}),
    Family("A-SKD", r"layer[1-4]\.\d+\.res_layer\.5\.running_mean", {}, renamed=_ASKD),
    Family("MBF (InsightFace)", r"layers\.\d+\.layers\.\d+\.layers\.2\.layers\.0\.weight", {12: "mbf"}),
    Family(
        "ViT (InsightFace)",
        r"blocks\.\d+\.attn\.qkv\.weight",
        {12: "vit_t or vit_s", 24: "vit_b"},
        r"feature\.2\.weight",  # timm's have none
    ),
)


class Kind(NamedTuple):
    """What names tell of their network."""

    family: Family
    units: int
    attention: str  # none, cbam

    @property
    def option(self) -> str | None:
        """What `backbone=` would take such weights, if any."""
        return self.family.options.get(self.units)


def recognise(names: Iterable[str]) -> Kind | None:
    """The family of a network and the number of its units, whatever stands in front of its names; None: unknown."""
    names = list(names)
    attention = "cbam" if any(".attention.channel." in name for name in names) else "none"
    for family in FAMILIES:
        pattern = re.compile(rf"(?:^|\.)({family.unit})$")
        units = {found[1] for name in names if (found := pattern.search(name))}
        if units and any(re.search(f"{family.mark}$", name) for name in names):
            return Kind(family, len(units), attention)
    return None


def in_our_names(content: Mapping[str, Value]) -> dict[str, Value]:
    """What a file holds, under the names that a network here has for it, where it is known to have other ones."""
    kind = recognise(content)
    found = dict(content)
    for theirs, ours in kind.family.renamed.items() if kind else ():
        pattern = re.compile(rf"(?:(?<=\.)|^){theirs}")
        found = {pattern.sub(ours, name): value for name, value in found.items()}
    return found


def explain(theirs: Iterable[str], ours: Iterable[str]) -> str:
    """A sentence about the names of a file, where they are known and not those of our kind of network; else "".

    Args:
        theirs: names in the file.
        ours: names of the network that was to be filled.
    """
    kind, own = recognise(theirs), recognise(ours)
    if kind is None or kind == own:
        return ""
    begin = f"These are weights of the {kind.family.title} family"
    if not kind.family.options:
        return f"{begin}, which no backbone of facelab takes"
    differs = kind.attention != (own.attention if own else "none")
    attention = f" backbone.attention={kind.attention}" if differs else ""
    return (
        f"{begin}: backbone={kind.option}{attention}" if kind.option else f"{begin}, with {kind.units} units{attention}"
    )
