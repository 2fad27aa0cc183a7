"""Stands in for data.augment: takes its time, so that a job can be interrupted; and holds batch norms still."""

import time

from torch import Tensor, nn

from facelab.training.module import FaceModule


class Steady(nn.Module):
    """Images as they are, some time later.

    Args:
        seconds: that every step takes.
        frozen: whether batch norms know nothing of the batch, of which every rank sees another part.
    """

    draws = 0

    def __init__(self, seconds: float, frozen: bool):
        super().__init__()
        self.seconds = seconds
        if frozen:
            FaceModule.configure_model = _with_frozen_norms(FaceModule.configure_model)
            FaceModule._calibrate = lambda self: None

    def forward(self, images: Tensor, draws: Tensor) -> Tensor:
        time.sleep(self.seconds)
        return images


def _with_frozen_norms(configure):
    def configured(self):
        configure(self)
        for module in self.backbone.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train(False)
                module.train = lambda mode=True, module=module: module

    return configured
