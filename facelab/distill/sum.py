"""A weighted sum of distillers: A-SKD + logits, or any others."""

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from facelab.distill.base import Distiller, Seen, Shapes, require_between

_WANTS = ("wants_features", "wants_attention", "wants_centres", "inherits_centres", "gives_margins")


class Sum(Distiller):
    """L = Σ w·L_part over any distillers, each of which has weights of its own inside as well.

    The sum asks for what any part asks for. Where a part gives margins, they are the sum's, whatever the part's weight.

    Args:
        student: its shapes.
        teacher: its shapes.
        parts: name → what makes that distiller when it is called with ``student=…, teacher=…``.
        weights: name → w of every part, 0 or more.

    Attributes:
        parts: the distillers, by name. Whoever trains on many ranks sets ``ranks`` of each, as of every distiller.

    Raises:
        ValueError: no part, other names in ``weights`` than in ``parts``, a name that cannot be one, two parts that
            give margins, or a part cannot compare these networks or has an option out of range.
    """

    def __init__(
        self,
        student: Shapes,
        teacher: Shapes,
        parts: Mapping[str, Callable[..., Distiller]],
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
                self.parts[name] = make(student=student, teacher=teacher)
            except ValueError as error:
                raise ValueError(f"parts.{name}: {error}") from None
        self.weights = {name: float(weights[name]) for name in parts}
        for want in _WANTS:
            setattr(self, want, any(getattr(part, want) for part in self.parts.values()))
        giving = [name for name, part in self.parts.items() if part.gives_margins]
        if len(giving) > 1:
            raise ValueError(f"parts {' and '.join(giving)} both give the margin of an image: leave one of them out")
        self.giving = giving[0] if giving else None

    def forward(self, student: Seen, teacher: Seen, labels: Tensor) -> Tensor:
        """What both networks have seen → the weighted sum."""
        total = student.embeddings.new_zeros(())
        for name, part in self.parts.items():
            total = total + self.weights[name] * part(student, teacher, labels)
        return total

    def margins(self, teacher: Seen, labels: Tensor) -> Tensor | None:
        """(b,) those of the part that gives them; None where none does."""
        if self.giving is None:
            return None
        part = self.parts[self.giving]
        assert isinstance(part, Distiller)
        return part.margins(teacher, labels)
