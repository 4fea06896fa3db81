"""Write four captions per image: detailed, several sentences, one sentence, keywords.

    ray job submit recaption                 on the running Ray cluster, with the nano family
    recaption --executor local               in this process
    recaption --images outputs/demo/images --output outputs/demo/captions
    ray job submit -- recaption --config configs/tr_dit_2b5.yaml
    recaption --set recaption.captioner.engine=http \\
        --set recaption.captioner.http.url=http://gpu-box:8000/v1

Each input shard is one task, committed whole by a manifest: the same command goes on where an
earlier one stopped, and does only new shards. Images that get no captions are counted by reason.
`python -m recaption.gallery` shows the result to people.

As the entry point of a Ray job the command runs in the folder where `ray start` was called. If
that holds no configs/, relative paths are taken from the repository instead.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from data_pipeline.jobs.jobs_config import JobsConfig
from data_pipeline.jobs.runner import run_job
from data_pipeline.storage.interface import StorageConfig
from recaption.captioner_config import CaptionerConfig
from recaption.job import RecaptionConfig, make_job
from t2i.config import (
    REPO_FOLDER,
    Section,
    add_config_arguments,
    config_from_args,
    describe_config,
    section,
)
from t2i.console import command_parser, get_logger, run_command

LOG = get_logger("recaption")
# Set by Ray for the entry point of a job.
RAY_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"


class Config(Section):
    """What this command reads."""

    job: RecaptionConfig = section("recaption.job")
    captioner: CaptionerConfig = section("recaption.captioner")
    jobs: JobsConfig = section("data_pipeline.jobs")
    storage: StorageConfig = section("data_pipeline.storage")


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser("recaption", __doc__)
    parser.add_argument("--images", metavar="URL", help="image shards: a folder or s3://...")
    parser.add_argument("--output", metavar="URL", help="where the captions go")
    parser.add_argument("--model", metavar="PATH", help="folder of an InternVL for engine internvl")
    parser.add_argument(
        "--executor",
        choices=("local", "ray"),
        help="default: ray as the entry point of a Ray job, else data_pipeline.jobs.executor",
    )
    add_config_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    if is_ray_job():
        enter_project_folder()
    config = merge_flags(config_from_args(args, Config), args)
    captioner = config.captioner
    model = captioner.http.url if captioner.engine == "http" else captioner.path
    LOG.info("%s", describe_config(args))
    LOG.info("%s, captioner %s, executor %s", config.job.images, model, config.jobs.executor)

    summary = run_job(make_job(config.job, captioner, config.storage), config.jobs)
    funnel = summary.funnel
    print(f"captions of {funnel.num_ok} of {funnel.num_in} images in {config.job.output}")
    print(
        f"to look at them: python -m recaption.gallery --images {config.job.images} "
        f"--captions {config.job.output}"
    )
    return summary.exit_code


def merge_flags(config: Config, args: argparse.Namespace) -> Config:
    """The config with the flags in it and all paths absolute: workers have other current folders."""
    job, captioner = config.job, config.captioner
    folders = {
        "images": absolute(args.images or job.images),
        "output": absolute(args.output or job.output),
    }
    path = args.model or captioner.path
    if Path(path).is_dir():
        path = absolute(path)
    executor = args.executor or ("ray" if is_ray_job() else config.jobs.executor)
    return config.model_copy(
        update={
            "job": job.model_copy(update=folders),
            "captioner": captioner.model_copy(update={"path": path}),
            "jobs": config.jobs.model_copy(update={"executor": executor}),
        }
    )


def absolute(url: str) -> str:
    """A folder's path made absolute; s3:// addresses stay."""
    return url if "://" in url else str(Path(url).expanduser().resolve())


def is_ray_job() -> bool:
    """Whether this process is the entry point of `ray job submit`."""
    return RAY_JOB_VARIABLE in os.environ


def enter_project_folder() -> None:
    """Change to the repository unless the current folder looks like one."""
    if not Path("configs").is_dir() and (REPO_FOLDER / "configs").is_dir():
        LOG.info("relative paths are taken from %s", REPO_FOLDER)
        os.chdir(REPO_FOLDER)


def entry_point() -> int:
    """The console script."""
    return run_command(main)


if __name__ == "__main__":
    raise SystemExit(entry_point())
