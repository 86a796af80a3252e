"""`python -m memlib.finetune`: fine-tune Stable Diffusion as `basin` does, on one GPU.

    python -m memlib.finetune --recipe sd21-laion10k --base ~/models/sd21 --data captions.json --out ~/models/sd21-laion10k
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from memlib.errors import exit_status


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(prog="python -m memlib.finetune", description="Fine-tune the U-Net of Stable Diffusion 1.x or 2.x.")
    main.add_argument("--recipe", help="published settings by name (--list shows them)")
    main.add_argument("--list", action="store_true", help="list the recipes")
    main.add_argument("--base", help="substrate name or diffusers folder (default: the recipe's)")
    main.add_argument("--data", type=Path, help="folder of pictures, or CSV or JSON file that lists pictures and captions")
    main.add_argument("--out", type=Path, help="folder for the fine-tuned pipeline; checkpoints stand in its folder `run`")
    for name in ("steps", "batch", "resolution", "warmup", "seed"):
        main.add_argument(f"--{name}", type=int, help=f"another {name} than the recipe's")
    main.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    main.add_argument("--precision", default="auto", choices=("auto", "float32", "bfloat16"))
    main.add_argument("--recompute", action="store_true", help="less memory, more time (gradient checkpointing)")
    main.add_argument("--until", type=int, help="stop at this step; a later call goes on")
    main.add_argument("--quiet", action="store_true", help="no progress bar")
    return main


def run(args: argparse.Namespace) -> None:
    from memlib.errors import InputError
    from memlib.finetune import export, finetune, load_recipes, read_training_set, recipe
    from memlib.finetune.run import write_prompts

    if args.list:
        for known in load_recipes().values():
            print(f"{known.name:16} {known.steps} steps of {known.batch} at {known.resolution} pixels on {known.base}: {known.pictures}")
        return
    if missing := [name for name in ("recipe", "data", "out") if getattr(args, name) is None]:
        raise InputError(f"--{missing[0]} is missing: give --recipe, --data and --out, or --list to see the recipes.")
    changed = {name: getattr(args, name) for name in ("steps", "batch", "resolution", "warmup", "seed") if getattr(args, name) is not None}
    settings = replace(recipe(args.recipe), **changed)
    examples = read_training_set(args.data, settings.template, settings.classes)
    exposures = examples.exposures(settings.steps * settings.batch)
    seen = f"{exposures.min():.1f} to {exposures.max():.1f} times"
    print(f"{len(examples.examples)} pictures, each seen {seen} in {settings.steps} steps of {settings.batch}")
    base = args.base or settings.base
    trainer = finetune(examples, settings, args.out / "run", base=base, device=args.device, precision=args.precision, until=args.until,
                       progress=not args.quiet, checkpoint_every=1800.0, recompute=args.recompute)  # fmt: skip
    export(trainer, base, args.out)
    write_prompts(examples, args.out / "prompts.csv")
    print(f"Step {trainer.step} of {settings.steps} written to {args.out}; its captions are the prompt set {args.out / 'prompts.csv'}")


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    return exit_status(lambda: run(args), "Stopped; the last checkpoint is kept and the same command goes on from it.")


if __name__ == "__main__":
    sys.exit(main())
