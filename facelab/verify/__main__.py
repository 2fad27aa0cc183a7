"""Is it the same person? `python -m facelab.verify a.jpg b.jpg model=…`; `--help` says more."""

from functools import partial

from facelab.door import hand_on, open_door


def main() -> None:
    """The command line."""
    open_door(partial(hand_on, "facelab.verify.verification.verify"), "verify", "facelab.verify", words="photographs")


if __name__ == "__main__":
    main()
