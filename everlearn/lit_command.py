"""The command `everlearn lit`: an image encoder and a text encoder become an image-text backbone."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Interval

from everlearn import options
from everlearn.errors import EverlearnError, as_word, printable
from everlearn.settings import Natural, Seed, checked

ABOUT = (
    "join a frozen image encoder and a frozen text encoder by projections, which are trained on images of named "
    "classes or with captions; the result is a file to use as --backbone, which compares images with texts"
)


def add_parser(verb: Callable[[str, str], Any]) -> None:
    """Add `lit` to the command line."""
    p = verb("lit", ABOUT)
    p.add_argument("--stream", metavar="NAME|FILE", required=True, help="images with their classes; a caption is a "
                   "class of its own (--stream.label_column)")  # fmt: skip
    p.add_argument("--stream.KEY", metavar="VALUE", help="a setting of the stream")
    p.add_argument("--image", metavar="NAME|DIR", default="vit-tiny", help="the image encoder (default: vit-tiny)")
    p.add_argument("--text", metavar="NAME|DIR", default="minilm", help="the text encoder (default: minilm)")
    p.add_argument("--template", metavar="TEXT", action="append",
                   help="a sentence with {} in the place of the name of a class; may be given several times "
                        "(default: 'a photo of a {}.'; for captions give '{}')")  # fmt: skip
    p.add_argument(
        "--epochs",
        type=int,
        metavar="N",
        help="the most epochs of training (default: 20); 0 keeps the closed-form solution",
    )
    p.add_argument("--batch-size", type=int, metavar="N", help="images in a step (default: 512)")
    p.add_argument("--lr", type=float, metavar="R", help="the learning rate (default: 0.001)")
    p.add_argument("--seed", type=int, metavar="N", help="the random seed (default: 0)")
    p.add_argument("--out", required=True, type=Path, metavar="FILE", help="a new file that ends in .safetensors")
    options.as_json(p)


SETTINGS = ("epochs", "batch_size", "lr", "seed")
BatchSize = Annotated[int, Interval(ge=2, le=10**9)]
"""Images that are compared with each other."""


def _lit(args: argparse.Namespace) -> int:
    check(args)
    with contextlib.redirect_stdout(sys.stderr):  # libraries print
        from everlearn import backbones, streams
        from everlearn.backbones import lit
        from everlearn.config import check_arguments
        from everlearn.lit_training import train
        from everlearn.streams.stream import Examples

        of_stream = check_arguments("stream", streams.load, dict(args.settings["stream"]))
        stream = streams.load(args.stream, **of_stream)
        if stream.input != "image" or stream.goal != "classes":
            raise EverlearnError(f"stream '{stream.name}' has no images of named classes: a pair learns from images "
                                 "and what they show")  # fmt: skip
        image, text = backbones.load(args.image), backbones.load(args.text)
        for encoder, kind in ((image, "image"), (text, "text")):
            if kind not in encoder.reads:
                raise EverlearnError(f"--{kind}: backbone '{encoder.name}' does not read {kind}s: give another one")
        given = {name: value for name in SETTINGS if (value := getattr(args, name)) is not None}
        if args.template:
            given["templates"] = args.template
        examples = Examples.concatenate([task.train for task in stream])
        found = train(image, text, examples, stream.class_names, progress=True, **given)
        lit.save(found.pair, args.out, image, text)
    if args.json:
        print(json.dumps({"file": str(args.out), "image": image.name, "text": text.name, "images": len(examples),
                          "held_out_classes": found.unseen, "closed_form": found.held_out[0],
                          "trained": found.held_out[found.epochs], "epochs": found.epochs}, indent=1))  # fmt: skip
        return 0
    count = len(stream.class_names)
    print(f"{len(examples):,} images of {count:,} classes or captions, of which {found.unseen} were held out")
    before, after, chance = (100 * x for x in (found.held_out[0], found.held_out[found.epochs], 1 / found.unseen))
    how = f"{after:.1f} % after {found.epochs} epochs" if found.epochs else "which the contrastive loss did not improve"
    print(f"zero-shot accuracy on those: {before:.1f} % in closed form, {how} (chance {chance:.1f} %)")
    print(f"written  {printable(args.out)}")
    print(f"use it   everlearn run --stream IMAGES --method frozen --backbone {as_word(args.out)}")
    return 0


def check(args: argparse.Namespace) -> None:
    """Refuse what would fail after minutes of encoding.

    Raises:
        EverlearnError: a number is out of its range, a template has no {}, or the file cannot be made.
    """
    from everlearn.config import check_file

    for name, type_ in (("epochs", Natural), ("batch_size", BatchSize), ("seed", Seed)):
        if (value := getattr(args, name)) is not None:
            checked(f"--{name.replace('_', '-')}", value, type_)
    if args.lr is not None and not 0 < args.lr < 1:
        raise EverlearnError(f"--lr {args.lr}: give a number between 0 and 1")
    for template in args.template or ():
        if template.count("{}") != 1 or {*"{}"} & {*template.replace("{}", "")}:
            raise EverlearnError(f"--template '{printable(template)}': put {{}} where the name of the class stands")
    if args.out.suffix != ".safetensors":
        raise EverlearnError(f"--out {args.out}: give a file that ends in .safetensors")
    if args.out.exists():
        raise EverlearnError(f"--out {args.out}: the file exists already: give a new one")
    check_file("--out", args.out)


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {"lit": _lit}
