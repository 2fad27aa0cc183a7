"""Between sampler and loss: whether they go together, and what a sampler learns from the loss."""

from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from facelab.data.plan import Plan
from facelab.loss.base import Loss
from facelab.loss.collective import rank_and_world
from facelab.training.objective import build_loss

SETTLE_EVERY = 32  # steps: to read what the loss says waits for the device


def check_feedback(plan: Plan, node: DictConfig, embedding_size: int) -> None:
    """Refuses a loss from which a sampler that adapts could learn nothing.

    The loss itself is asked, with two embeddings: so no list of losses has to be kept.

    Args:
        plan: the sampler's.
        node: the `loss` node.
        embedding_size: D.

    Raises:
        ValueError: it does not tell what the sampler needs.
    """
    if not plan.adapts:
        return
    loss = build_loss(node, embedding_size, num_classes=max(2, rank_and_world()[1]), load=False)
    rows = loss(torch.eye(2, embedding_size), torch.arange(2), 0).rows
    name = type(loss).__name__
    if "right" not in rows:
        raise ValueError(
            f"data/sampler=adaptive draws by whether images are classified right, which {name} does not tell: choose a "
            "loss with a classifier, or another sampler"
        )
    noise = getattr(plan, "noise_cosine", None)
    if noise is not None and "cosine" not in rows:
        raise ValueError(
            f"data.sampler.noise_cosine is {noise}, and {name} has no cosines: set it to null, or choose another loss"
        )


def about_sampler(plan: Plan, labels: np.ndarray, loss: Loss, accumulate: int) -> dict[str, str]:
    """Rows of the summary before training: only where there is something to say.

    Args:
        plan: the sampler's.
        labels: (N,) of the images that are trained on.
        loss: of any size.
        accumulate: parts that a rank's batch is cut into.
    """
    said = [plan.about] if plan.about else []
    if loss.compares_images and not plan.pairs_people:
        counts = np.bincount(labels).astype(float)
        share = (counts * (counts - 1)).sum() / max(len(labels) * (len(labels) - 1), 1)
        pairs = share * plan.batch_size * (plan.batch_size - 1) / 2
        said.append(
            f"{type(loss).__name__} learns from pairs of one person, of which a batch of {plan.batch_size} drawn at "
            f"random has about {pairs:.2g}: data/sampler=pk brings more"
        )
    if loss.compares_images and accumulate > 1:
        said.append(f"{type(loss).__name__} compares within each of the {accumulate} parts of trainer.accumulate")
    return {"sampler": "; ".join(said)} if said else {}


class Feedback:
    """Brings what the loss says of each image to the sampler that adapts to it.

    Every rank hears of the global batch, and so has the same weights without a word between them. What the loss says
    stays on its device for some steps; when it is read changes nothing, since an epoch begins and a checkpoint is
    written only after all of it was.

    Args:
        plan: a plan that adapts.
        parts: how many parts a rank's batch is cut into (trainer.accumulate).
    """

    def __init__(self, plan: Any, parts: int):
        self.plan, self.parts = plan, parts
        self._heard: list[tuple[int, int, Tensor, Tensor | None]] = []

    def hear(self, step: int, part: int, rows: Any) -> None:
        """What the loss said (LossOutput.rows) of the ranks' part number `part` = 0, 1, … of a step's batch."""
        self._heard.append((step, part, rows["right"], rows.get("cosine")))
        ends = part == self.parts - 1 and self.plan.epoch(step + 1) > self.plan.epoch(step)
        if ends or len(self._heard) >= SETTLE_EVERY * self.parts:
            self.settle()

    def settle(self) -> None:
        """Everything heard is learned."""
        _, world = rank_and_world()
        for step, part, right, cosine in self._heard:
            batch = self.plan.indices(step).reshape(world, -1)
            # As the module cuts its own batch; the rows of all ranks' parts stand one behind the other.
            positions = np.array_split(batch, self.parts, axis=1)[part].ravel()
            cosines = None if cosine is None else cosine.float().cpu().numpy()
            self.plan.learn(step, positions, right.cpu().numpy(), cosines)
        self._heard.clear()

    def state(self) -> dict[str, Tensor]:
        """The sampler's tensors for a checkpoint."""
        self.settle()
        return {name: torch.from_numpy(value) for name, value in self.plan.state().items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Takes them back from there.

        Raises:
            ValueError: they are missing, or of other data.
        """
        self._heard.clear()
        self.plan.restore({name: value.numpy() for name, value in state.items()})
