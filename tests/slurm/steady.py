"""Stands in for data.augment: takes its time, so that a job can be interrupted; and holds batch norms still."""

import time

from torch import Tensor, nn

from facelab.data.augment import Augment
from facelab.training.module import FaceModule


class Steady(Augment):
    """Changes images as Augment does, some time later.

    Args:
        mirror: as of Augment.
        crop: the same.
        seconds: that every step takes.
        frozen: whether batch norms know nothing of the batch, of which every rank sees another part.
    """

    def __init__(self, mirror: float, crop: int, seconds: float, frozen: bool):
        super().__init__(mirror, crop)
        self.seconds = seconds
        if frozen:
            FaceModule.configure_model = _with_frozen_norms(FaceModule.configure_model)
            FaceModule._calibrate = lambda self: None

    def forward(self, images: Tensor, draws: Tensor) -> Tensor:
        time.sleep(self.seconds)
        return super().forward(images, draws)


def _with_frozen_norms(configure):
    def configured(self):
        configure(self)
        for module in self.backbone.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train(False)
                module.train = lambda mode=True, module=module: module

    return configured
