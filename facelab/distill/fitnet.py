"""FitNet: the student's feature maps shall hold what the teacher's do."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facelab.distill.base import Distiller, Seen, Shapes, require_between
from facelab.distill.directions import precise
from facelab.distill.maps import require_as_many, resized


class FitNet(Distiller):
    """L = w·Σ_maps mean((r(S) − T)²); r is a learned 1×1 convolution from the student's channels to the teacher's.

    The mean is over images, channels and places. A teacher's map of another height or width is brought to the
    student's (``facelab.distill.maps``). The regressors are trained with the student and thrown away with this module.

    Source: Romero et al., "FitNets: Hints for Thin Deep Nets", arXiv:1412.6550, equation 3: half of the squared
    distance of one pair of maps, which trains the lower half of the student alone, before all else. Here it is a term
    of the loss, as comparisons of methods have it (CRD, arXiv:1910.10699: w = 100 on CIFAR-100); their regressor ends
    with a batch norm and a ReLU, this one is linear, since a face network's maps have both signs.

    Args:
        student: its shapes.
        teacher: its shapes.
        weight: w, 0…10000.

    Attributes:
        regressors: r for each map, with torch's initial values; drawing them does not advance torch's generator.

    Raises:
        ValueError: no feature maps, or not as many of both; an option is out of range.
    """

    wants_features = True

    def __init__(self, student: Shapes, teacher: Shapes, weight: float):
        super().__init__()
        require_as_many(student, teacher, "fitnet")
        require_between("weight", weight, 0.0, 1e4)
        self.weight = weight
        channels = [(mine[0], theirs[0]) for mine, theirs in zip(student.features, teacher.features, strict=True)]
        with torch.random.fork_rng(devices=[]):  # a run without a teacher draws the same values for all the rest
            self.regressors = nn.ModuleList(nn.Conv2d(mine, theirs, 1) for mine, theirs in channels)

    def forward(self, student: Seen, teacher: Seen, labels: Tensor) -> Tensor:
        """Both networks' feature maps → a scalar."""
        total = student.embeddings.new_zeros(())
        with torch.autocast(total.device.type, enabled=False):
            for regressor, mine, theirs in zip(self.regressors, student.features, teacher.features, strict=True):
                mine, theirs = precise(mine), precise(theirs)
                total = total + F.mse_loss(regressor(mine), resized(theirs, mine))
        return self.weight * total
