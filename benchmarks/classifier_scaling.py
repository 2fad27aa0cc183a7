"""What the classifier takes for more classes and GPUs than are at hand, on paper: docs/classifier.md holds its output.

A step of a rank is taken apart into what can be counted exactly: multiplications, bytes that pass through memory, bytes
between GPUs. These are divided by rates. On a machine that results/classifier.csv knows the rate of multiplication is
that of its bare products (`gemm`), and what `facelab` takes beyond its own products gives that of the passes; for a GPU
that nobody has measured yet, both are *assumed*: a share of what its data sheet says. Nothing overlaps and every pass
goes to memory, which errs on the slow side.

    python benchmarks/classifier_scaling.py                              # prints
    python benchmarks/classifier_scaling.py --write docs/classifier.md   # puts it into the page
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

from recording import RESULTS, read

BEGIN, END = "<!-- classifier_scaling.py -->\n", "<!-- end -->\n"
WIDE = 4  # bytes of a float32
NO_MEMORY = "out of memory"  # of classifier.py
CHUNK = 2**26  # elements of a chunk's (B,c), facelab.loss.classifier._CHUNK["cuda"]
ASSUMED = {"products": 0.6, "memory": 0.8, "links": 0.6}  # shares of a data sheet's rates
PUBLISHED = {
    "sampled": 1855.0,
    "backbone": 5004.0,
}  # images/s of 8×V100: 29M identities, and 125k, whose classifier is small


@dataclass(frozen=True)
class Card:
    """A GPU as its data sheet has it: multiply-adds count as two operations.

    Attributes:
        name: as sold.
        products: operations a second of dense matrices in bf16 or fp16.
        memory: bytes a second.
        room: bytes.
        links: bytes a second to other GPUs, one direction.
    """

    name: str
    products: float
    memory: float
    room: float
    links: float


CARDS = [
    Card("V100 32 GB", 125e12, 0.9e12, 32e9, 150e9),
    Card("A100 80 GB", 312e12, 2.04e12, 80e9, 300e9),
    Card("H100 80 GB", 989e12, 3.35e12, 80e9, 450e9),
    Card("H200 141 GB", 989e12, 4.8e12, 141e9, 450e9),
]


@dataclass(frozen=True)
class Step:
    """A classifier's step on one rank.

    Attributes:
        classes: C, over all ranks.
        ranks: W.
        batch: B, over all ranks.
        size: D.
        product: bytes of a number in the products' format.
    """

    classes: int
    ranks: int
    batch: int
    size: int
    product: int

    @property
    def rows(self) -> int:
        """C/W, the centres of a rank."""
        return -(-self.classes // self.ranks)

    @property
    def kept(self) -> int:
        """Rows of the batch whose exponentials the gradient's memory keeps."""
        return min(self.batch, self.size * WIDE // self.product)

    @property
    def operations(self) -> float:
        """Of 3 products for the rows that are kept, of 4 for the others."""
        return (4 * self.batch - self.kept) * 2.0 * self.rows * self.size

    @property
    def passes(self) -> float:
        """Bytes that the passes between the products read and write."""
        centres = self.rows * self.size
        directions = 2 * (WIDE + self.product)  # forward and backward: centres read, directions written
        back = self.product + WIDE + WIDE  # the gradient of the directions and the centres read, the gradient written
        matrix = self.batch * self.rows * self.product
        others = (self.batch - self.kept) * self.rows * self.product
        kept = self.kept * self.rows * self.product
        # The scan reads the matrix twice and writes what is kept; the rest is raised in place, and the kept put beside.
        return centres * (directions + back) + 2 * matrix + kept + 2 * others + (2 * kept if others else 0)

    @property
    def update(self) -> float:
        """Bytes of clipping (norm, scaling) and of SGD with momentum in one pass."""
        return self.rows * self.size * WIDE * ((1 + 2) + (3 + 2))

    @property
    def exchanged(self) -> float:
        """Bytes that a rank receives: embeddings gathered, their gradients summed."""
        return (1 + 2) * (self.ranks - 1) / self.ranks * self.batch * self.size * WIDE

    @property
    def standing(self) -> float:
        """Bytes of centres, gradient and momentum."""
        return 3.0 * self.rows * self.size * WIDE

    @property
    def chunk(self) -> float:
        """Bytes of all else: a chunk's matrix, directions and their gradient, (B,D) and (chunks,B) tensors."""
        columns = min(CHUNK // max(self.batch, self.size), self.rows)
        small = 8 * self.batch * self.size + 3 * self.batch * -(-self.rows // columns)
        return float(columns * self.product * (self.batch + 2 * self.size) + small * WIDE)

    def seconds(self, rates: "Rates") -> dict[str, float]:
        """Of each part, at these rates."""
        return {
            "products": self.operations / rates.products,
            "passes": self.passes / rates.memory,
            "update": self.update / rates.memory,
            "exchange": self.exchanged / rates.links,
        }


@dataclass(frozen=True)
class Rates:
    """What is attained: operations a second, bytes a second in memory and between GPUs, and where that is from."""

    products: float
    memory: float
    links: float
    source: str

    @classmethod
    def of(cls, card: Card, rows: list[dict[str, str]]) -> "Rates":
        """As measured with the most classes on a card of this kind, in bf16; else assumed."""
        links = ASSUMED["links"] * card.links
        known = [pair for pair in pairs(rows) if card.name.split()[0] in pair[0]["machine"]]
        known = [(ours, gemm) for ours, gemm in known if ours["precision"] == "bf16"]
        if not known:
            shares = ASSUMED["products"] * card.products, ASSUMED["memory"] * card.memory
            return cls(*shares, links, "assumed")
        ours, gemm = max(known, key=lambda pair: int(pair[0]["classes"]))
        step, rate, rest = taken_apart(ours, gemm)
        return cls(rate, step.passes / max(rest, 1e-9), links, "measured")


def pairs(rows: list[dict[str, str]]) -> list[tuple[dict[str, str], dict[str, str]]]:
    """The rows of facelab, each with that of the bare products of the same setting; none that ran out of memory."""
    names = ("machine", "torch", "threads", "precision", "batch", "size", "classes")
    fits = [row for row in rows if row["seconds"] != NO_MEMORY]
    bare = {tuple(row.get(name) for name in names): row for row in fits if row["method"] == "gemm"}
    keyed = [(row, tuple(row.get(name) for name in names)) for row in fits if row["method"] == "facelab"]
    return [(row, bare[key]) for row, key in keyed if key in bare]


def taken_apart(ours: dict[str, str], gemm: dict[str, str]) -> tuple[Step, float, float]:
    """A measured step, the bare products' operations a second, and the seconds beyond its products at that rate."""
    product = 2 if ours["precision"] == "bf16" else 4
    step = Step(int(ours["classes"]), 1, int(ours["batch"]), int(ours["size"]), product)
    rate = 8.0 * step.batch * step.rows * step.size / float(gemm["seconds"])
    return step, rate, float(ours["seconds"]) - step.operations / rate


def measured(rows: list[dict[str, str]]) -> list[str]:
    """A line for each setting in which both the bare products and facelab were measured."""
    lines = []
    for ours, gemm in pairs(rows):
        step, rate, rest = taken_apart(ours, gemm)
        words = [ours["machine"], ours["precision"], f"{step.batch}", f"{step.classes:,}", f"{rate / 1e9:,.0f}"]
        words += [
            f"{step.operations / rate:.3g}",
            f"{rest:.3g}",
            f"{float(ours['seconds']) / float(gemm['seconds']):.2f}",
        ]
        lines.append(f"| {' | '.join(words)} |")
    return lines


def table(title: str, step: Step, rows: list[dict[str, str]]) -> list[str]:
    """A card per line: milliseconds of each part, memory, and images a second."""
    lines = [
        f"**{title}**: B = {step.batch:,}, D = {step.size}, {step.rows:,} centres a rank. {step.operations / 1e12:.1f} "
        f"tera-operations, {step.passes / 1e9:.0f} GB through memory in the passes, {step.update / 1e9:.0f} GB in the "
        f"update, {step.exchanged / 1e6:.0f} MB from other ranks; {step.standing / 1e9:.1f} GB stand and "
        f"{step.chunk / 1e9:.2f} GB come and go.",
        "",
        "| card | products, ms | passes | ÷ 4 products | update | exchange | step, ms | images/s | memory | rates |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for card in CARDS:
        rates = Rates.of(card, rows)
        parts = step.seconds(rates)
        need = (step.standing + step.chunk) / card.room
        words = [f"{1e3 * value:.1f}" for value in parts.values()] + [f"{1e3 * sum(parts.values()):.0f}"]
        bare = parts["products"] * 4 * step.batch / (4 * step.batch - step.kept)
        words.insert(2, f"{(parts['products'] + parts['passes']) / bare:.2f}")
        words += [
            f"{step.batch / sum(parts.values()):,.0f}",
            f"{need:.0%}" if need < 1 else "does not fit",
            rates.source,
        ]
        lines.append(f"| {card.name} | {' | '.join(words)} |")
    return [*lines, ""]


def published(step: Step) -> str:
    """The sentence that compares with the sampled classifier's images per second."""
    card = CARDS[0]
    whole = step.batch / PUBLISHED["backbone"] + sum(step.seconds(Rates.of(card, [])).values())
    return (
        f"arcface_torch on eight V100 trained on 29 million identities, with a sample of 10 %, at "
        f"{PUBLISHED['sampled']:,.0f} images/s, and on 125 thousand, where the classifier costs little, at "
        f"{PUBLISHED['backbone']:,.0f}. If the network takes what it took there, the exact classifier would come to "
        f"{step.batch / whole:,.0f} images/s at B = {step.batch:,} on the same cards, were their products in fp16, in "
        "which facelab does not train. The batch there is not known to us. Update and most of the passes cost the same "
        "whatever it is: at a smaller one the figure would be lower."
    )


def report(results: Path) -> str:
    """All of it, in Markdown."""
    rows = read(results / "classifier.csv")
    lines = [
        "Measured (operations of `gemm`; seconds of facelab's products at that rate, and of all the rest):",
        "",
        "| machine | format | B | C | GFLOP/s | products, s | the rest, s | facelab ÷ gemm |",
        "|---|---|---|---|---|---|---|---|",
        *measured(rows),
        "",
        "On paper, the classifier alone; a card that has not been measured is assumed to attain "
        f"{ASSUMED['products']:.0%} of its data sheet's rate for products, {ASSUMED['memory']:.0%} of its memory's and "
        f"{ASSUMED['links']:.0%} of its links':",
        "",
    ]
    one, eight = Step(10_000_000, 1, 1024, 512, 2), Step(29_000_000, 8, 1024, 512, 2)
    for title, step in (
        ("1 million classes on one card", Step(1_000_000, 1, 1024, 512, 2)),
        ("10 million classes on one card", one),
        ("29 million classes on 8 cards", eight),
        ("29 million classes on 8 cards, a larger batch", Step(29_000_000, 8, 8192, 512, 2)),
    ):
        lines += table(title, step, rows)
    return "\n".join([*lines, published(eight), ""])


def main() -> None:
    """Prints, or writes into a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the table")
    parser.add_argument("--write", type=Path, help="page to put it into")
    options = parser.parse_args()
    text = report(options.results)
    if options.write is None:
        print(text)
        return
    before, rest = options.write.read_text().split(BEGIN)
    options.write.write_text(before + BEGIN + text + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
