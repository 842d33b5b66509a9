"""Register the verb `clotkit container`."""

import argparse
from pathlib import Path

from clotkit.options import DONE, Result, Verbs, add_verb, megabytes, out_folder, seconds


def register(verbs: Verbs) -> None:
    """Add the verb to the command line."""
    verb = add_verb(verbs, "container", "write the folder of a container for Grand Challenge, to build and to upload")
    verb.add_argument("--weights", type=Path, required=True, metavar="DIR", help="a member, or a folder of members")
    verb.add_argument("--out", type=out_folder, required=True, metavar="DIR", help="the folder, written anew")
    verb.add_argument("--base", metavar="IMAGE", help="the image to build on (default: a Python 3.12, by its digest)")
    verb.add_argument("--tag", default="clotkit-algorithm", help="name of the image (default: clotkit-algorithm)")
    verb.add_argument(
        "--model",
        choices=("image", "tarball"),
        default="image",
        help="where the members travel: in the image, or apart, to be at /opt/ml/model (default: image)",
    )
    add_sockets(verb)
    verb.set_defaults(verb=_container)


def add_sockets(verb: argparse.ArgumentParser) -> None:
    """Add the options that make a container's settings."""
    verb.add_argument(
        "--image-socket",
        action="append",
        default=[],
        metavar="SLUG",
        help="a socket whose images are slides; may be given several times (default: all without mask in their slug, "
        "or the only one)",
    )
    verb.add_argument(
        "--probability-socket", default="probability", metavar="SLUG", help="gets the answer (default: probability)"
    )
    verb.add_argument(
        "--number-of",
        default="",
        metavar="CLASS",
        help="the answer is one number, the probability of this class (default: an object with all classes)",
    )
    verb.add_argument(
        "--label-socket", default="label", metavar="SLUG", help='gets the label (default: label; "": none)'
    )
    verb.add_argument(
        "--api",
        choices=("exec", "invoke"),
        default="exec",
        help="exec: started once for each job; invoke: a server with /health and /invoke (default: exec)",
    )
    verb.add_argument(
        "--time-limit", type=seconds, default=3_600.0, metavar="TIME", help="of one job, like 1h (default: 1h)"
    )
    verb.add_argument(
        "--container-memory", type=megabytes, default=16_384, metavar="SIZE", help="of one job (default: 16GB)"
    )


def _container(arguments: argparse.Namespace) -> Result:
    from functools import partial

    from clotkit.containers.build import BASE, Image, write_container
    from clotkit.containers.config import config_of

    base = BASE if arguments.base is None else arguments.base
    image = Image(arguments.tag, base, arguments.model == "image")
    write_container(arguments.weights, config_of(arguments), image, arguments.out, partial(print, flush=True))
    return Result(DONE, {"folder": arguments.out})
