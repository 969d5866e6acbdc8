"""What ``smidgen serve`` takes."""

from __future__ import annotations

import argparse
import ipaddress


def add_serving(parser: argparse.ArgumentParser) -> None:
    """Options of its own; those of the data come beside."""
    parser.add_argument("folder", metavar="FOLDER", help="what compress wrote")
    parser.add_argument("--against", metavar="FILE.onnx", help="the original, where it is not in the folder")
    parser.add_argument("--target", metavar="NAME", help="the file shown first (default: what the budget was for)")
    parser.add_argument("--samples", metavar="N", type=int, default=20, help="inputs shown, drawn at random (20)")
    parser.add_argument("--classes", metavar="FILE", help="names of the classes, one a line")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of the draw (0)")
    parser.add_argument(
        "--host", metavar="ADDRESS", nargs="?", const="0.0.0.0", type=_address,
        help="serve the local network too, over https; one address of this machine, or all of them without",
    )  # fmt: skip
    parser.add_argument("--port", metavar="N", type=int, default=8000, help="0 for any free one (8000)")


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address("127.0.0.1" if text == "localhost" else text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no IP address; name the folder before --host") from None
