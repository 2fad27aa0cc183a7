"""Which images come together, and how often: the plans that `data/sampler` chooses between.

All have Plan's interface and keep its promises: batches are global, the same for every number of ranks, threads and
interruptions, and a batch costs the same on a thousand images and on forty million. An epoch of each is as many steps
as there are whole batches of images, so that schedules and validations fall alike.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from facelab.data.plan import Plan, people_key, permute, permute_each, picture_keys, strata_points

__all__ = ["Adaptive", "ClassBalanced", "PeopleTimesImages", "Shuffled"]


class Shuffled(Plan):
    """Every image once an epoch, in a new order each time: Plan itself.

    Args:
        labels: (N,) the person of each image; their number alone counts.
        batch_size: images of a global batch.
        seed: the run's.

    Raises:
        ValueError: as Plan.
    """

    def __init__(self, labels: np.ndarray, batch_size: int, seed: int) -> None:
        super().__init__(len(labels), batch_size, seed)


class PeopleTimesImages(Plan):
    """P people with K images each in a global batch, one person behind the other: for losses of pairs and triplets.

    Source: FaceNet (arXiv:1503.03832) takes about 40 images of a person into a batch; P × K as such is section 2 of
    Hermans et al., arXiv:1703.07737.

    People come in rounds, in each round everybody once in a new random order; the I mod P who are left over at its end
    are dropped, each time others. Rounds go on over the ends of epochs. A person's images go round in the same way: in
    each cycle every image at most once, in a new order, K of them at a time, so that the K of a batch are different
    images and all images have their turn. Everything is a function of (seed, step, place in the batch); what is held
    are the images sorted by person, about 4 bytes an image.

    A person with fewer than K images comes with all of them, some again, augmented otherwise.

    Args:
        labels: (N,) the person of each image.
        batch_size: images of a global batch, P·K.
        seed: the run's.
        images: K, at least 2; 4 is usual (Hermans et al.), 2 to 8.
        people: P, which follows from the others; given, it must agree with them.

    Raises:
        ValueError: when P·K is not the batch, when there are fewer than P people, when P or K is below 2, or when more
            than half of the people have fewer than K images (they are counted).
    """

    pairs_people = True

    def __init__(self, labels: np.ndarray, batch_size: int, seed: int, images: int, people: int | None) -> None:
        super().__init__(len(labels), batch_size, seed)
        if images < 2:
            raise ValueError(f"data.sampler.images is {images}: a pair needs 2 images of a person, 4 is usual")
        if batch_size % images:
            raise ValueError(
                f"data.sampler.images is {images}, which does not divide trainer.batch_size={batch_size}: change one "
                "of them, so that a batch holds whole people"
            )
        self.people, self.images = batch_size // images, images
        if people is not None and people != self.people:
            raise ValueError(
                f"data.sampler.people × images is {people} × {images} = {people * images:,}, but trainer.batch_size is "
                f"{batch_size:,}: change one of the three, or leave people at null"
            )
        _, counts = np.unique(labels, return_counts=True)
        if not 2 <= self.people <= len(counts):
            raise ValueError(
                f"trainer.batch_size={batch_size} in parts of {images} images takes {self.people:,} people, and there "
                f"are {len(counts):,} to train on: choose data.sampler.images for 2 to {len(counts):,}"
            )
        short = int((counts < images).sum())
        if 2 * short > len(counts):
            raise ValueError(
                f"data/sampler=pk: {short:,} of {len(counts):,} people have fewer than {images} images, "
                f"{int((counts < 2).sum()):,} of them only one: lower data.sampler.images, or train on people with more"
            )
        self.counts = counts
        self.starts, self.sorted = np.cumsum(counts) - counts, _by_person(labels)
        self.steps_per_round = len(counts) // self.people
        self.about = f"{self.people:,} people × {images} images a batch"
        if short:
            self.about += f"; {short:,} of {len(counts):,} people have fewer, and some of their images come again"

    def picks(self, step: int, count: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Positions, and places in the epoch."""
        places = self._places(step, count)
        rounds, within = np.divmod(np.arange(step, step + count), self.steps_per_round)
        people = np.concatenate([self._people(turn, within[rounds == turn]) for turn in np.unique(rounds)])
        pictures = self._pictures(people, np.repeat(rounds, self.people))
        return self.sorted[self.starts[people][:, None] + pictures].ravel().astype(np.int64), places

    def _people(self, turn: int, batches: np.ndarray) -> np.ndarray:
        """(n,) batches of a round → (n·P,) people."""
        slots = batches[:, None] * self.people + np.arange(self.people)
        return permute(slots.ravel(), len(self.counts), people_key(self.seed, turn))

    def _pictures(self, people: np.ndarray, rounds: np.ndarray) -> np.ndarray:
        """(n,) people and the rounds in which they come → (n,K) which of their images."""
        counts = self.counts[people]
        cycles, part = np.divmod(rounds, np.maximum(counts // self.images, 1))
        keys = np.repeat(picture_keys(self.seed, people, cycles), self.images)
        places = part[:, None] * self.images + np.arange(self.images)
        each = np.repeat(counts, self.images)
        # Without % the places of people with fewer than K images would be too many; of others they are below counts.
        return permute_each(places.ravel() % each, each, keys).reshape(-1, self.images)


class ClassBalanced(Plan):
    """People come equally often, or in proportion to a power of how many images they have.

    Source: Kang et al., Decoupling Representation and Classifier for Long-Tailed Recognition (ICLR 2020), equation 1:
    a place in a batch shows person j with the probability

        p_j = n_j^q / Σ_i n_i^q,  n_j the images of j.

    An epoch has N places, of which the last that fill no batch are dropped, and cuts them into N equal strata: a person
    owns an interval N·p_j long, and each stratum, in an order that is a new permutation each time, draws a point. So a
    person comes N·p_j times an epoch, give or take less than two, on average exactly. A person's images go round: in
    each cycle every image at most once, in a new order. Cycles go on over the ends of epochs; in the strata that a
    person shares with a neighbour one image of the cycle may be passed over, so that of a person who comes m times an
    epoch about one of m + 1 is. Everything is a function of (seed, step, place in the batch); what is held are the
    images sorted by person, about 4 bytes an image, and some numbers for each person.

    With q = 1 every image comes once an epoch.

    Args:
        labels: (N,) the person of each image.
        batch_size: images of a global batch.
        seed: the run's.
        power: q in [0, 1]: 0 everybody alike, 1 as the data are.

    Raises:
        ValueError: the power is out of range, or as Plan.
    """

    def __init__(self, labels: np.ndarray, batch_size: int, seed: int, power: float) -> None:
        super().__init__(len(labels), batch_size, seed)
        _require("power", power, 0 <= power <= 1, "a power from 0 (everybody alike) to 1 (as the data are)")
        _, counts = np.unique(labels, return_counts=True)
        self.counts = counts
        self.starts, self.sorted = np.cumsum(counts) - counts, _by_person(labels)
        shares = np.cumsum(counts.astype(np.float64) ** power)
        self.bounds = shares * (self.length / shares[-1])  # where each person's interval ends, in strata
        self.bounds[-1] = self.length
        times = np.diff(self.bounds, prepend=0)
        self.about = f"people in proportion to images^{power:g}" if power else "everybody equally often"
        self.about += (
            f": an image comes {(times / counts).min():.2g} to {(times / counts).max():.2g} times an epoch, "
            f"a person {times.min():.3g}" + (f" to {times.max():.3g}" if power else "")
        )

    def picks(self, step: int, count: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Positions, and which cycle of its person's in this epoch each of them is of."""
        epoch = self.epoch(step)
        strata, _ = super().picks(step, count)
        points = strata_points(self.seed, epoch, strata)
        people = np.searchsorted(self.bounds, points, side="right")
        counts = self.counts[people]
        # The strata that a person may come in, the first and the last perhaps as a neighbour's. Each has a turn.
        first = np.where(people > 0, np.floor(self.bounds[people - 1]), 0).astype(np.int64)
        width = np.ceil(self.bounds[people]).astype(np.int64) - first
        turns = epoch * width + strata - first
        cycles = turns // counts
        pictures = permute_each(turns % counts, counts, picture_keys(self.seed, people, cycles))
        return self.sorted[self.starts[people] + pictures].astype(np.int64), cycles - epoch * width // counts


class Adaptive(Plan):
    """Images come in proportion to weights, which fall where the network is right and rise where it is wrong.

    Source: adaptive data sampling of AdaptiveFace (Liu et al., CVPR 2019), which tells the rule; the values are ours.

    Every image begins with weight 1, its largest. Each time it was trained on, its weight becomes

        max(weight · down, floor)                 where no other class centre was nearer than its own,
        min(max(weight, floor) · up, 1)           where one was,
        cut                                       where the cosine to its own centre was below `noise_cosine`:
                                                  probably it is somebody else.

    An epoch draws by the weights as they were at its beginning. It divides their sum into N equal strata and draws a
    point in each, in an order that is a new permutation each time: so an image with the share p of all weight comes N·p
    times, give or take less than one. While all weights are equal, this is the shuffled plan, batch by batch.

    Args:
        labels: (N,) the person of each image; their number alone counts.
        batch_size: images of a global batch.
        seed: the run's.
        up: factor where the network was wrong, at least 1.
        down: factor where it was right, in (0, 1].
        floor: smallest weight of an image that is no noise, in (0, 1].
        noise_cosine: cosine in [-1, 1] below which an image is taken for noise; None: never.
        noise_after: epochs before that begins, at least 0.
        cut: weight of what is taken for noise, in (0, floor].

    Attributes:
        weights: (N,) float32, those that training moves; about 16 bytes an image are held in all.

    Raises:
        ValueError: an option is out of range, or as Plan.
    """

    adapts = True

    def __init__(
        self,
        labels: np.ndarray,
        batch_size: int,
        seed: int,
        up: float,
        down: float,
        floor: float,
        noise_cosine: float | None,
        noise_after: float,
        cut: float,
    ) -> None:
        super().__init__(len(labels), batch_size, seed)
        _require("up", up, up >= 1, "a factor of at least 1")
        _require("down", down, 0 < down <= 1, "a factor above 0 and up to 1")
        _require("floor", floor, 0 < floor <= 1, "a share of the largest weight, above 0 and up to 1")
        _require("cut", cut, 0 < cut <= floor, f"a weight above 0 and up to data.sampler.floor={floor}")
        _require("noise_after", noise_after, noise_after >= 0, "a number of epochs, at least 0")
        if noise_cosine is not None:
            _require("noise_cosine", noise_cosine, -1 <= noise_cosine <= 1, "a cosine between -1 and 1, or null")
        self.up, self.down, self.floor = np.float32(up), np.float32(down), np.float32(floor)
        self.noise_cosine, self.noise_after, self.cut = noise_cosine, noise_after, np.float32(cut)
        self.weights = np.ones(self.length, dtype=np.float32)
        self._freeze(-1, self.weights.copy())
        self.about = f"adaptive: weights × {down:g} where right, × {up:g} where wrong, {floor:g} to 1"
        if noise_cosine is not None:
            self.about += f"; {cut:g} below cosine {noise_cosine:g}, from epoch {noise_after:g} on"

    def picks(self, step: int, count: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Positions, and which time in its epoch each of them comes.

        Asking for the first time for a step of an epoch freezes the weights as they are for the whole of it.

        Raises:
            ValueError: when the weights of that epoch are gone, since a later one has begun.
        """
        epoch = self.epoch(step)
        if epoch < self.frozen:
            raise ValueError(f"step {step} is of epoch {epoch}, and epoch {self.frozen} has begun with other weights")
        if epoch > self.frozen:
            self._freeze(epoch, self.weights.copy())
        strata, _ = super().picks(step, count)
        width = self._sums[-1] / self.length
        points = strata_points(self.seed, epoch, strata) * width
        positions = np.minimum(np.searchsorted(self._sums, points, side="right"), self.length - 1)
        first = np.where(positions > 0, self._sums[positions - 1], 0) // width  # the first stratum that may meet it
        return positions, np.maximum(strata - first.astype(np.int64), 0)

    def learn(self, step: int, positions: np.ndarray, right: np.ndarray, cosines: np.ndarray | None) -> None:
        """Moves the weights by what training found at a step.

        Args:
            step: absolute.
            positions: (n,) of the images, as `indices` gives them; where one comes twice, its second time counts after
                its first.
            right: (n,) bool, whether no other class was as near.
            cosines: (n,) to the own class centre; None where nobody looks for noise.
        """
        noise = np.zeros(len(positions), dtype=bool)
        if self.noise_cosine is not None and step >= self.noise_after * self.steps_per_epoch:
            assert cosines is not None, "whoever trains has seen that the loss gives cosines"
            noise = cosines < self.noise_cosine
        for rows in _apart(positions):
            old = self.weights[positions[rows]]
            fallen = np.maximum(old * self.down, self.floor)
            risen = np.minimum(np.maximum(old, self.floor) * self.up, np.float32(1))
            self.weights[positions[rows]] = np.where(noise[rows], self.cut, np.where(right[rows], fallen, risen))

    def state(self) -> dict[str, np.ndarray]:
        """What a checkpoint keeps: the moving weights, the frozen ones and the epoch of those."""
        return {"weights": self.weights, "frozen": self._frozen, "epoch": np.array([self.frozen])}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Goes on from there.

        Raises:
            ValueError: when the state is missing, or of another number of images.
        """
        for name in ("weights", "frozen"):
            count = len(state[name]) if name in state else 0
            if count != self.length:
                raise ValueError(
                    f"the checkpoint knows how often to draw {count:,} images, and there are {self.length:,} to train "
                    "on: set data and data/sampler as in its training"
                )
        self.weights = state["weights"].copy()
        self._freeze(int(state["epoch"][0]), state["frozen"].copy())

    def _freeze(self, epoch: int, weights: np.ndarray) -> None:
        self.frozen, self._frozen = epoch, weights
        self._sums = np.cumsum(weights, dtype=np.float64)


def _by_person(labels: np.ndarray) -> np.ndarray:
    """Positions (N,) sorted by person, in their own order within each."""
    return np.argsort(labels, kind="stable").astype(np.int32 if len(labels) < 2**31 else np.int64)


def _require(name: str, value: float, holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"data.sampler.{name} is {value}: give {what}")


def _apart(positions: np.ndarray) -> Iterator[np.ndarray]:
    """Rows (n,) in groups in which no position comes twice: the first times, the second times, …"""
    order = np.argsort(positions, kind="stable")
    same = positions[order]
    time = np.arange(len(order)) - np.searchsorted(same, same)
    for number in range(int(time.max(initial=-1)) + 1):
        yield order[time == number]
