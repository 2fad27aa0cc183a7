"""Who is it? `python -m facelab.identify photo.jpg gallery=…`; `--help` says more."""

from functools import partial

from facelab.door import hand_on, open_door


def main() -> None:
    """The command line."""
    open_door(
        partial(hand_on, "facelab.verify.identification.identify"), "identify", "facelab.identify", words="photographs"
    )


if __name__ == "__main__":
    main()
