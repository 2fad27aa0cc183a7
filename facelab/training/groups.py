"""What a run tells of a head's groups: a line of its summary, and a sheet of faces for each group at its end."""

from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from facelab.backbone.complexity import count_parameters
from facelab.data.augment import normalise
from facelab.head.groupface import GroupFace
from facelab.report.groups import draw_groups

FILE = "groups.png"
FACES, BATCH = 512, 64  # embedded for the sheet, in all and at once


def about_head(head: nn.Module) -> dict[str, str]:
    """For the summary: what stands on top of the backbone, where anything does."""
    count = count_parameters(head)
    groups = f", {head.groups} groups, {head.ensemble} ensemble" if isinstance(head, GroupFace) else ""
    return {"head": f"{type(head).__name__}{groups}, {count:,} parameters"} if count else {}


class WithGroups(nn.Module):
    """A network that tells of groups as well: (B,3,H,W) → (B,D+D), the embedding and v̂, what its groups are read from.

    Where a mirrored image's result is added, v̂ is that of both, as the embedding is.

    Args:
        backbone: (B,3,H,W) → (B,D).
        head: GroupFace.
    """

    def __init__(self, backbone: nn.Module, head: GroupFace):
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: Tensor) -> Tensor:
        """(B,3,H,W) in [−1,1] → (B,D+D) float32."""
        features = self.backbone(images)
        return torch.cat([self.head(features).float(), self.head.decide(features).hidden.float()], dim=1)


def with_groups(backbone: nn.Module, head: nn.Module, option: str) -> WithGroups:
    """The same network, telling of groups.

    Args:
        backbone: (B,3,H,W) → (B,D).
        head: what stands on it.
        option: what asks for it, for the message.

    Raises:
        ValueError: it has none.
    """
    if not isinstance(head, GroupFace):
        raise ValueError(
            f"{option} asks for the distance between groups, and this network has none: leave it at 0, or give a "
            "checkpoint that was trained with head=groupface"
        )
    return WithGroups(backbone, head).eval()


class GroupSheet(pl.Callback):
    """Draws groups.png: the faces that the reported network puts into each group, once the benchmark is scored.

    The faces are of held-out training identities, evenly taken; of the reported benchmark where nobody is held out. A
    run whose head has no groups has no such sheet.

    Args:
        folder: the run's; None on ranks that do not write.
    """

    def __init__(self, folder: Path | None):
        self.folder = folder

    @torch.no_grad()
    def on_test_end(self, trainer: pl.Trainer, module: Any) -> None:
        """The weights are those that were reported, still on their device."""
        head: Any = module.head if module.average is None else module.average.head
        if self.folder is None or not isinstance(head, GroupFace):
            return
        backbone = (module if module.average is None else module.average).backbone
        faces = module.data.selection or module.data.report
        number = min(FACES, len(faces))
        images = np.stack([faces.load(int(i)) for i in np.linspace(0, len(faces) - 1, number).round()])
        found = [
            head.decide(backbone(normalise(torch.from_numpy(part).to(module.device)))).logits.softmax(1).cpu()
            for part in np.array_split(images, -(-number // BATCH))
        ]
        certain, chosen = torch.cat(found).max(1)
        draw_groups(self.folder / FILE, images, chosen.numpy(), certain.numpy(), head.groups)
