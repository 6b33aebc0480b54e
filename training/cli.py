"""xianliao-train: a prepared set to a checkpoint."""

from __future__ import annotations

import sys

from chatbot.errors import explain_faults
from training.settings import TrainSettings


def build_parser():
    from jsonargparse import ActionConfigFile, ArgumentParser

    parser = ArgumentParser(
        prog="xianliao-train",
        description="Train or fine-tune on prepared sets. Several processes: torchrun --nproc_per_node N -m training …",
    )
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file with any of the settings below")
    parser.add_argument("--data", nargs="+", type=str, metavar="DIR", help="prepared sets, all with the same tokenizer")
    parser.add_argument("--resume", action="store_true", help="continue the run that was stopped in --output")
    parser.add_class_arguments(TrainSettings, nested_key=None, as_group=False, skip={"data", "resume"})
    return parser


def config_first(argv: list[str]) -> list[str]:
    """The arguments with --config in front, for later ones win and flags are to win over the file."""
    front: list[str] = []
    rest = list(argv)
    for index, word in enumerate(argv):
        if word == "--config" and index + 1 < len(argv):
            front = rest[index : index + 2]
            del rest[index : index + 2]
            break
    return front + rest


@explain_faults
def main(argv: list[str] | None = None) -> int | None:
    parser = build_parser()
    config = parser.instantiate_classes(parser.parse_args(config_first(sys.argv[1:] if argv is None else argv)))
    config.pop("config", None)
    if not config.data:
        parser.error("--data is needed: one or more prepared sets, made by xianliao-prepare")
    settings = TrainSettings(**vars(config))
    from training.loop import train

    record = train(settings)
    best = "" if record["best"] is None else f", best validation {record['best']:.4f} nats/unit"
    print(f"{settings.output}: {record['step']} steps, {record['tokens']} tokens{best}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
