"""A-SKD: the student shall look where the teacher looks."""

from collections.abc import Sequence

import torch
from torch import Tensor

from facelab.distill.base import Distiller, Seen, Shapes, require_between
from facelab.distill.directions import one_minus_cosine, precise
from facelab.distill.maps import resized


class AttentionSimilarity(Distiller):
    """L = w·Σ_units Σ_{channel, spatial} mean over images of (1 − cos(S, T)); S, T are a unit's maps as long vectors.

    The maps are those before their sigmoid. Units are compared in pairs, the student's ``blocks`` with the teacher's
    ``teacher_blocks``. A teacher's spatial map of another size is brought to the student's (``facelab.distill.maps``).

    Source: Shin et al., "Teaching Where to Look: Attention Similarity Knowledge Distillation for Low Resolution Face
    Recognition", ECCV 2022, and its public code, of which this is the sum over units and maps and the w = 5 (the paper
    takes half of spatial + channel). A map of zeros has no gradient here; in the public code a very large one.

    Args:
        student: its shapes.
        teacher: its shapes.
        weight: w, of each map, 0…1000.
        channel: whether channel maps are compared.
        spatial: whether spatial maps are compared.
        blocks: which attention units of the student, counted from 0; ``None`` for all.
        teacher_blocks: the teacher's, in the same order; ``None`` for those of the same numbers.

    Raises:
        ValueError: a network has no attention; the units are not as many on both sides, or there is none of that
            number; channel maps of different lengths; an option is out of range.
    """

    wants_attention = True

    def __init__(
        self,
        student: Shapes,
        teacher: Shapes,
        weight: float,
        channel: bool,
        spatial: bool,
        blocks: Sequence[int] | int | None,
        teacher_blocks: Sequence[int] | int | None,
    ):
        super().__init__()
        require_between("weight", weight, 0.0, 1e3)
        if not (channel or spatial):
            raise ValueError("channel=false and spatial=false leave nothing to compare: set one of them to true")
        self.weight, self.channel, self.spatial = weight, channel, spatial
        mine = _chosen("blocks", blocks, student)
        theirs = _chosen("teacher_blocks", blocks if teacher_blocks is None else teacher_blocks, teacher)
        if len(mine) != len(theirs):
            raise ValueError(
                f"attention_similarity compares unit with unit, and there are {len(mine)} of the {student.name}, "
                f"{len(theirs)} of the {teacher.name}: list as many in blocks and in teacher_blocks"
            )
        self.pairs = list(zip(mine, theirs, strict=True))
        for s, t in self.pairs if channel else ():
            channels, wanted = student.attention[s][0], teacher.attention[t][0]
            if channels != wanted:
                raise ValueError(
                    f"the channel map of unit {s} of the {student.name} has {channels} numbers, that of unit {t} of "
                    f"the {teacher.name} {wanted}: set channel=false, or pair other units in blocks and teacher_blocks"
                )

    def forward(self, student: Seen, teacher: Seen, labels: Tensor) -> Tensor:
        """Both networks' attention → a scalar."""
        total = student.embeddings.new_zeros(())
        alike: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}  # maps of one shape, for few and large operations
        with torch.autocast(total.device.type, enabled=False):
            for s, t in self.pairs:
                for kind in (0,) * self.channel + (1,) * self.spatial:
                    mine = student.attention[s][kind]
                    alike.setdefault(mine.shape, []).append((mine, resized(teacher.attention[t][kind], mine)))
            for maps in alike.values():
                mine, theirs = (precise(torch.stack(side).flatten(2)) for side in zip(*maps, strict=True))
                total = total + one_minus_cosine(mine, theirs).mean(dim=1).sum()
        return self.weight * total


def _chosen(option: str, blocks: Sequence[int] | int | None, network: Shapes) -> list[int]:
    count = len(network.attention)
    if not count:
        raise ValueError(f"the {network.name} has no attention maps to compare: train it with backbone.attention=cbam")
    if blocks is None:
        return list(range(count))
    chosen = [blocks] if isinstance(blocks, int) else list(blocks)
    if not chosen or any(type(block) is not int or not 0 <= block < count for block in chosen):
        raise ValueError(
            f"{option}={chosen}: the {network.name} has {count} attention units, choose from 0 to {count - 1}, or null"
        )
    return chosen
