# SPDX-License-Identifier: Apache-2.0
"""``vllm-lladav eval``. vLLM is imported late: help and typos come at once."""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vllm_lladav.options.options import ServerOptions
from vllm_lladav.tools.checkpoint import Checkpoint, read_checkpoint
from vllm_lladav.tools.eval import engine
from vllm_lladav.tools.eval.answers import Target
from vllm_lladav.tools.eval.cost import prompt_bound, resolved
from vllm_lladav.tools.eval.plots import draw_plots, require_matplotlib
from vllm_lladav.tools.eval.questions import Question, read_questions
from vllm_lladav.tools.eval.report import (
    describe_cheapest,
    format_table,
    table_row,
    task_row,
    write_results,
)
from vllm_lladav.tools.eval.settings import (
    AXES,
    PARAMETERS,
    Setting,
    all_combinations,
    parse_axis,
    parse_setting,
    plan_sweep,
)
from vllm_lladav.tools.eval.sweep import Summary, run_setting, summarise

DEFAULT_MODEL = "lladav-tiny"
USAGE_ERROR = 2


def add_parser(subparsers: Any) -> None:
    """Add ``eval`` to the subcommands."""
    parser = subparsers.add_parser(
        "eval",
        help="accuracy of settings against what they cost",
        description="Ask questions about pictures with every setting of a sweep; "
        "compare accuracy, model FLOPs and wall time with the exact setting, which "
        "always runs first; name the cheapest setting that keeps enough accuracy.",
        epilog="Prints a table; writes results.json, results.csv, accuracy-flops.png "
        "and accuracy-seconds.png to --out, the first two after every setting.",
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "--questions",
        type=Path,
        required=True,
        metavar="FILE",
        help="JSONL, or a directory with questions.jsonl; each line has id, image (a "
        "file next to it), question, answer, and maybe task and kind",
    )
    parser.add_argument(
        "--limit", type=_positive, metavar="N", help="only the first N questions"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("eval"),
        metavar="DIR",
        help="for the results; what is there is replaced (default: %(default)s)",
    )
    parser.add_argument(
        "--keep",
        type=float,
        default=0.95,
        help="share of the exact setting's accuracy that the setting to be named must "
        "keep (default: %(default)s)",
    )
    parser.add_argument("--no-plots", action="store_true", help="leave the plots out")
    _add_target_arguments(parser)
    _add_sweep_arguments(parser)


def _add_target_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is asked, and how")
    group.add_argument(
        "--model",
        help="name, directory, or alias: lladav, lladav-tiny; runs in this process. "
        "With --url it only gives the dimensions for FLOPs. (default without --url: "
        f"{DEFAULT_MODEL}, a small checkpoint trained on drawn pictures)",
    )
    group.add_argument(
        "--url", help="a running server instead, such as http://localhost:8000"
    )
    group.add_argument(
        "--served-model-name",
        metavar="NAME",
        help="with --url (default: the first one that the server lists)",
    )
    group.add_argument(
        "--api-key", metavar="KEY", help="with --url (default: OPENAI_API_KEY)"
    )
    group.add_argument(
        "--engine-args",
        default="{}",
        metavar="JSON",
        help='without --url: further options of vllm.LLM, such as \'{"dtype": '
        '"float32"}\'',
    )
    group.add_argument(
        "--concurrency",
        type=_positive,
        default=8,
        metavar="N",
        help="requests at once (default: %(default)s)",
    )
    group.add_argument(
        "--warm-up",
        type=_natural,
        metavar="N",
        help="questions that are asked first with every setting and not measured "
        "(default: as many as run at once)",
    )
    group.add_argument(
        "--repeats",
        type=_positive,
        default=1,
        metavar="N",
        help="how often a setting is timed; the median counts (default: %(default)s)",
    )
    group.add_argument(
        "--seed",
        type=_natural,
        default=0,
        metavar="N",
        help="of the first question, the others have the following ones; matters to "
        "random pruning and remasking (default: %(default)s)",
    )


def _add_sweep_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "settings",
        "All combinations of the lists run, each meaning once. Without any of these "
        "only the exact setting runs.",
    )
    group.add_argument(
        "--gen-length",
        type=_positive,
        default=64,
        metavar="N",
        help="canvas length of all requests, in tokens (default: %(default)s)",
    )
    group.add_argument(
        "--block-length",
        type=_positive,
        metavar="N",
        help="of all requests; divides it (default: the whole canvas, at most "
        f"{ServerOptions.block_length})",
    )
    for name, option in AXES.items():
        default = "0" if name == "prune_rate" else option.default_text
        names = option.kind.argument.get("choices")
        text = option.help + (f", of {', '.join(names)}" if names else "")
        group.add_argument(
            option.flag, metavar="LIST", help=f"{text} (default: {default})"
        )
    group.add_argument(
        "--setting",
        action="append",
        default=[],
        metavar="[NAME:]PARAMETER=VALUE,...",
        help="a setting beside the combinations; may be repeated. Parameters: "
        f"{', '.join(PARAMETERS)}",
    )


def _natural(text: str, least: int = 0) -> int:
    value = int(text)
    if value < least:
        raise argparse.ArgumentTypeError(f"must be at least {least}: {value}")
    return value


def _positive(text: str) -> int:
    return _natural(text, least=1)


def run(args: argparse.Namespace) -> int:
    """Exit code: 0; 2 with a message about what cannot be done as asked; 1 with a
    message if the server fails or refuses."""
    try:
        # What needs no model is checked before one is loaded.
        settings = _settings(args)
        engine_args = _engine_args(args.engine_args)
        questions = read_questions(args.questions, args.limit)
        if not 0 < args.keep <= 1:
            raise ValueError(f"--keep must be above 0 and at most 1: {args.keep}")
        if not args.no_plots:
            require_matplotlib()
        args.out.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        return _complain(error, USAGE_ERROR)

    # vLLM writes much to standard output that is of no use here.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from openai import OpenAIError
    from vllm.exceptions import VLLMClientError

    try:
        model = args.model or (None if args.url else DEFAULT_MODEL)
        checkpoint = read_checkpoint(model) if model else None
        num_layers = checkpoint.shape.num_layers if checkpoint else None
        for setting in settings:
            resolved(setting, num_layers, None if args.url else args.concurrency)
        with _target(args, checkpoint, questions, engine_args) as target:
            summaries = _sweep(args, target, settings, questions, checkpoint)
    except OpenAIError as error:
        # Why it could not be reached, if that was it.
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        return _complain(f"the server: {error}{cause}", 1)
    except (OSError, ValueError, VLLMClientError) as error:
        return _complain(error, USAGE_ERROR)
    _print_results(summaries, args.keep)
    if not args.no_plots:
        draw_plots(args.out, summaries, args.keep)
    print(f"\nwritten: {args.out}")
    return 0


def _settings(args: argparse.Namespace) -> tuple[Setting, ...]:
    longest = min(ServerOptions.block_length, args.gen_length)
    lengths = {
        "gen_length": args.gen_length,
        "block_length": args.block_length or longest,
    }
    axes = {
        name: parse_axis(name, text)
        for name in AXES
        if (text := getattr(args, name)) is not None
    }
    explicit = [parse_setting(text) for text in args.setting]
    return plan_sweep(lengths, all_combinations(axes), explicit)


def _engine_args(text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"--engine-args is no JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"--engine-args must be a JSON object: {text}")
    return values


@contextmanager
def _target(
    args: argparse.Namespace,
    checkpoint: Checkpoint | None,
    questions: list[Question],
    engine_args: dict[str, Any],
) -> Iterator[Target]:
    """The server, or an engine that is shut down afterwards."""
    if args.url:
        from vllm_lladav.tools.eval.server import ServerTarget

        yield ServerTarget(
            args.url, args.concurrency, args.served_model_name, args.api_key, args.seed
        )
        return
    assert checkpoint is not None
    longest = max(prompt_bound(checkpoint, question) for question in questions)
    with engine.running(
        checkpoint.name,
        args.concurrency,
        longest + args.gen_length,
        args.gen_length,
        engine_args,
    ) as llm:
        yield engine.EngineTarget(llm, args.seed)


def _sweep(
    args: argparse.Namespace,
    target: Target,
    settings: tuple[Setting, ...],
    questions: list[Question],
    checkpoint: Checkpoint | None,
) -> list[Summary]:
    """Run all settings. What is known is written after each, in case it is stopped."""
    warm_up = args.concurrency if args.warm_up is None else args.warm_up
    parameters = vars(args).copy()
    del parameters["run"], parameters["api_key"]
    summaries: list[Summary] = []
    for number, setting in enumerate(settings, 1):
        print(f"[{number}/{len(settings)}] {setting.label}", file=sys.stderr, end="")
        found = run_setting(target, questions, setting, warm_up, args.repeats)
        baseline = summaries[0].run if summaries else found
        summaries.append(summarise(found, questions, baseline, checkpoint))
        row = table_row(summaries[-1], summaries[0])
        print(f": {row['accuracy']}, {row['seconds']} s", file=sys.stderr, flush=True)
        is_done = number == len(settings)
        write_results(args.out, summaries, questions, parameters, args.keep, is_done)
    return summaries


def _print_results(summaries: list[Summary], keep: float) -> None:
    print(format_table([table_row(summary, summaries[0]) for summary in summaries]))
    if len(summaries[0].by_task) > 1:
        print("\nAccuracy per task:")
        print(format_table([task_row(summary) for summary in summaries]))
    print(f"\n{describe_cheapest(summaries, keep)}")


def _complain(error: Exception | str, exit_code: int) -> int:
    print(f"vllm-lladav eval: error: {error}", file=sys.stderr)
    return exit_code
