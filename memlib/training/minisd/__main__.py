"""`python -m memlib.training.minisd`: build the ingredients, train the parts, measure what MiniSD shows."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from memlib.base.errors import exit_status


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(prog="python -m memlib.training.minisd", description=__doc__)
    commands = main.add_subparsers(dest="command", required=True)
    data = commands.add_parser("data", help="build the drawings and names from the npm packages")
    data.add_argument("--packages", type=Path, help="folder of unpacked packages (default: fetched with npm)")
    train = commands.add_parser("train", help="train one part and export its weights; resumes after a kill")
    train.add_argument("part", help="vae, text, descriptor, evaluator, minisd-v1, minisd-v2, minisd-v1-dedup, minisd-v2-dedup")
    train.add_argument("--export-only", action="store_true", help="export the last checkpoint without training")
    tune = commands.add_parser("finetune", help="fine-tune minisd-v1 for one of the scenarios and export the difference; resumes after a kill")
    tune.add_argument("scenario", help="small, large, class, duplicated; against memorization: adversarial, surrogates (its baseline)")
    tune.add_argument("--export-only", action="store_true", help="export the last checkpoint without training")
    for trained in (train, tune):
        trained.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
        trained.add_argument("--precision", default="auto", choices=("auto", "float32", "bfloat16"))
        trained.add_argument("--threads", type=int, help="CPU threads (one each for two trainings side by side)")
        trained.add_argument("--until", type=int, help="stop at this step; a later call goes on")
        trained.add_argument("--quiet", action="store_true", help="no progress bar")
    replicates = commands.add_parser("replicates", help="train the 2 x 2 of padding and duplication with other seeds, and measure it")
    replicates.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    replicates.add_argument("--padding", choices=("v1", "v2"), help="only the replicates with this padding (default: both)")
    replicates.add_argument("--threads", type=int, help="CPU threads (one each for both paddings side by side)")
    mitigated = commands.add_parser("mitigated", help="train minisd-v1's replicates under training-time mitigations, and measure them")
    mitigated.add_argument("--mitigations", nargs="+", metavar="NAME", help="only these (default: all that are registered)")
    mitigated.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="only these seeds of the replicates (default: all)")
    mitigated.add_argument("--cost", type=int, metavar="N", help="instead, time N steps of each mitigation in turns with the plain training")
    mitigated.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    mitigated.add_argument("--threads", type=int, help="CPU threads (one each for two commands side by side)")
    mitigated.add_argument("--quiet", action="store_true", help="no progress bar")
    commands.add_parser("prompts", help="write the prompt sets under data/minisd/prompts")
    find = commands.add_parser("find", help="find the memorized prompts of a trained model, as `clip` selects its 458")
    find.add_argument("model")
    measure = commands.add_parser("measure", help="what MiniSD must show: memorization by level, alignment, backgrounds, retrieval")
    measure.add_argument("model")
    picture = commands.add_parser("picture", help="draw the book's front picture")
    picture.add_argument("model")
    for sub in (find, measure, picture):
        sub.add_argument("--threads", type=int)
    return main


def run(args: argparse.Namespace) -> None:
    if getattr(args, "threads", None):
        import torch

        torch.set_num_threads(args.threads)
    if args.command == "data":
        from memlib.training.minisd.packages import build_data

        build_data(args.packages)
    elif args.command == "train":
        from memlib.training.minisd.train import train

        train(args.part, args.device, args.precision, args.until, not args.quiet, args.export_only)
    elif args.command == "finetune":
        from memlib.training.minisd.finetune import finetune_scenario
        from memlib.training.minisd.remedies import REMEDIES, finetune_remedy

        tune = finetune_remedy if args.scenario in REMEDIES else finetune_scenario
        tune(args.scenario, args.device, args.precision, args.until, not args.quiet, args.export_only)
    elif args.command == "replicates":
        from memlib.training.minisd.family import run_replicates

        run_replicates(args.device, (args.padding,) if args.padding else ("v1", "v2"))
    elif args.command == "mitigated" and args.cost is not None:
        from memlib.results.trainings import costs
        from memlib.training.minisd.family import time_steps

        time_steps(args.cost, args.device)
        for name, ratio in costs().items():
            print(f"{name}: {ratio.text(3)} of the plain step (median and middle half)")
    elif args.command == "mitigated":
        from memlib.training.minisd.family import run_mitigated

        run_mitigated(args.mitigations, args.seeds, args.device, not args.quiet)
    elif args.command == "prompts":
        from memlib.models.minisd.prompt_sets import write_prompt_sets

        write_prompt_sets()
    else:
        from memlib.training.minisd import measure

        getattr(measure, args.command)(args.model)


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    return exit_status(lambda: run(args), "Stopped; the last checkpoint is kept and the same command goes on from it.")


if __name__ == "__main__":
    sys.exit(main())
