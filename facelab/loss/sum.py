"""A weighted sum of losses: ArcFace + 0.1·triplet, or any others, several classifiers among them."""

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from facelab.loss.base import Loss, LossOutput, require_between


class Sum(Loss):
    """L = Σ w·L_part over any losses, each of which sees the same embeddings and keeps what it has learned to itself.

    A part is what it would be alone: two classifiers in one sum have a matrix of class centres each, which start alike,
    being a function of torch's seed.

    Args:
        embedding_size: D.
        num_classes: C, over all ranks.
        parts: name → what makes that loss when it is called with ``embedding_size=D, num_classes=C``; the first of them
            that knows ``accuracy``, or something about the rows, speaks for the sum.
        weights: name → w of every part, 0 or more; 0 leaves a part out of the sum, and its curve in the logs.

    Attributes:
        parts: the losses, by name.

    Raises:
        ValueError: no part, other names in ``weights`` than in ``parts``, a name that cannot be one, or an option of a
            part is out of range.
    """

    def __init__(
        self,
        embedding_size: int,
        num_classes: int,
        parts: Mapping[str, Callable[..., Loss]],
        weights: Mapping[str, float],
    ):
        super().__init__()
        if not parts or set(parts) != set(weights):
            names, weighed = ", ".join(map(str, parts)), ", ".join(map(str, weights))
            raise ValueError(f"parts are {names or 'none'}, weights {weighed or 'none'}: give every part a weight")
        self.parts = nn.ModuleDict()
        for name, make in parts.items():
            require_between(f"weights.{name}", weights[name], 0.0, 1e4)
            if not str(name).isidentifier() or hasattr(nn.ModuleDict, name):
                raise ValueError(f"parts.{name}: a part's name is a word of letters, digits and _, such as {name}_1")
            try:
                self.parts[name] = make(embedding_size=embedding_size, num_classes=num_classes)
            except ValueError as error:
                raise ValueError(f"parts.{name}: {error}") from None
        self.weights = {name: float(weights[name]) for name in parts}
        self.compares_images = any(part.compares_images for part in self.parts.values())

    def forward(self, embeddings: Tensor, labels: Tensor, step: int) -> LossOutput:
        """(b,D) embeddings, (b,) int64 labels of this rank → the weighted sum over the global batch.

        Logs: ``loss/<part>``, the value of each before its weight; ``accuracy`` of the first part that has one; all
        else that a part has to say, as ``<word>/<part>``.
        """
        outputs = {name: part(embeddings, labels, step) for name, part in self.parts.items()}
        terms = [self.weights[name] * output.loss for name, output in outputs.items()]
        logs = {f"loss/{name}": output.loss.detach() for name, output in outputs.items()}
        rows: dict[str, Tensor] = {}
        for name, output in outputs.items():
            for key, value in output.logs.items():
                logs[key if key == "accuracy" and key not in logs else f"{key}/{name}"] = value
            rows |= {key: value for key, value in output.rows.items() if key not in rows}
        return LossOutput(sum(terms[1:], terms[0]), logs, rows)

    def sharded_parameters(self) -> list[str]:
        """Those of the parts."""
        return [f"parts.{name}.{own}" for name, part in self.parts.items() for own in _sharded(part)]


def _sharded(part: nn.Module) -> list[str]:
    assert isinstance(part, Loss)
    return part.sharded_parameters()
