"""Makes a gallery of people: `python -m facelab.enrol people/ model=… out=…`; `--help` says more."""

from functools import partial

from facelab.door import hand_on, open_door


def main() -> None:
    """The command line."""
    open_door(partial(hand_on, "facelab.verify.enrolment.enrol"), "enrol", "facelab.enrol", words="people")


if __name__ == "__main__":
    main()
