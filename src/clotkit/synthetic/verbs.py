"""Register the commands for synthetic slides and pictures."""

import argparse

from clotkit.options import DONE, Result, Verbs, add_verb, out_folder


def register(verbs: Verbs) -> None:
    """Add this package's commands to the command line."""
    _add_phantom(verbs)
    _add_contours(verbs)


def _add_phantom(verbs: Verbs) -> None:
    verb = add_verb(verbs, "phantom", "write a synthetic split in the form of a competition's")
    verb.add_argument(
        "out",
        type=out_folder,
        metavar="OUT",
        help="the folder to write; the same split of an earlier phantom is replaced",
    )
    verb.add_argument("--split", choices=("train", "test"), default="test", help="the split to write (default: test)")
    verb.add_argument("--slides", type=int, default=8, help="number of slides (default: 8)")
    verb.add_argument("--seed", type=int, default=0, help="the same seed writes the same bytes (default: 0)")
    verb.add_argument(
        "--size",
        default="small",
        help="real: the sizes of the competition's slides, or if its file has none, usual ones; small: an eighth of "
        "each side; or WIDTHxHEIGHT in pixels for all slides (default: small)",
    )
    verb.add_argument(
        "--separation", type=float, default=1.0, help="difference between the classes, from 0 (none) to 4 (default: 1)"
    )
    verb.set_defaults(verb=_phantom)


def _phantom(arguments: argparse.Namespace) -> Result:
    from clotkit.competitions import load_competition
    from clotkit.synthetic.phantom import write_split

    write_split(
        arguments.out,
        arguments.split,
        arguments.slides,
        arguments.seed,
        load_competition(arguments.competition),
        size=arguments.size,
        separation=arguments.separation,
        log=print,
    )
    return Result(DONE, {"folder": arguments.out, "split": arguments.split, "slides": arguments.slides})


def _add_contours(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "contours", help="draw synthetic pictures like ultrasound, with and without a double contour"
    )
    verb.add_argument("out", type=out_folder, metavar="OUT", help="the folder to write: yes/, no/, metadata.csv")
    verb.add_argument("--pictures", type=int, default=1200, help="number of pictures (default: 1200)")
    verb.add_argument("--seed", type=int, default=0, help="the same seed writes the same bytes (default: 0)")
    verb.set_defaults(verb=_contours)


def _contours(arguments: argparse.Namespace) -> Result:
    from clotkit.synthetic.contours import write_contours

    write_contours(arguments.out, arguments.pictures, arguments.seed, print)
    return Result(DONE, {"folder": arguments.out, "pictures": arguments.pictures})
