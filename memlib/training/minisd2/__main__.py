"""`python -m memlib.training.minisd2`: train the parts of the second miniature and its family, and measure what it must show."""

from __future__ import annotations

import argparse
import sys

from memlib.base.errors import exit_status


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(prog="python -m memlib.training.minisd2", description=__doc__)
    commands = main.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train parts, one after another, and export their weights; resumes after a kill")
    train.add_argument("parts", nargs="+", help="vae, decoder, text, descriptor, evaluator, minisd-v1, minisd-v2, minisd-v1-dedup, minisd-v2-dedup")
    train.add_argument("--export-only", action="store_true", help="export the last checkpoint without training")
    train.add_argument("--until", type=int, help="stop at this step; a later call goes on")
    family = commands.add_parser("family", help="train the members of data/minisd2/family.yml, one after another; resumes after a kill")
    family.add_argument("--members", nargs="+", metavar="NAME", help="only these (default: all)")
    family.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="only these of their seeds (default: all)")
    for trained in (train, family):
        trained.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
        trained.add_argument("--precision", default="auto", choices=("auto", "float32", "bfloat16"))
        trained.add_argument("--threads", type=int, help="CPU threads (one each for two trainings side by side)")
        trained.add_argument("--quiet", action="store_true", help="no progress bar")
    return main


def run(args: argparse.Namespace) -> None:
    if getattr(args, "threads", None):
        import torch

        torch.set_num_threads(args.threads)
    if args.command == "family":
        from memlib.training.minisd2.family import train_family

        train_family(args.members, args.seeds, args.device, args.precision, not args.quiet)
        return
    from memlib.training.minisd2.train import train

    for part in args.parts:
        train(part, args.device, args.precision, args.until, not args.quiet, args.export_only)


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    return exit_status(lambda: run(args), "Stopped; the last checkpoint is kept and the same command goes on from it.")


if __name__ == "__main__":
    sys.exit(main())
