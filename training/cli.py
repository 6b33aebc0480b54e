"""xianliao-train: train a checkpoint from prepared sets."""

from __future__ import annotations

import os
import sys
from functools import partial

from chatbot.errors import explain_faults
from chatbot.language.translation import announce, labelled, translate


@partial(explain_faults, extra="train")
def main(argv: list[str] | None = None) -> int | None:
    from training.arguments import build_parser, read_settings, spelling_warning, split_flags
    from training.inputs import check_inputs
    from training.reporting.summary import describe, summary_of
    from training.settings import SettingsError

    argv = sys.argv[1:] if argv is None else argv
    parser = build_parser()
    if {"-h", "--help"} & set(argv):
        parser.print_help()
        return 0
    is_first_process = os.environ.get("RANK", "0") == "0"
    warning = spelling_warning(argv)
    if warning is not None and is_first_process:
        print(f"{parser.prog}: {labelled('warning: ', warning)}", file=sys.stderr)
    try:
        settings, origins = read_settings(argv)
    except SettingsError as error:
        print(f"{parser.prog}: {labelled('error: ', str(error))}", file=sys.stderr)
        return 2
    check_inputs(settings)
    if is_first_process:
        print(describe(settings, origins), file=sys.stderr)
    if split_flags(argv, []).is_dry_run:
        announce("measuring some steps … (a minute or two, nothing is written)")
        from training.reporting.estimate import estimate

        print("\n".join(map(translate, estimate(settings).lines)))
        return 0
    if is_first_process:
        announce(f"loading {settings.init or ', '.join(settings.data)} …")
    from training.run import train

    record = train(settings)
    if is_first_process:
        print(summary_of(settings, record))
    return 130 if record["stopped_by"] else 0


if __name__ == "__main__":
    sys.exit(main(None))
