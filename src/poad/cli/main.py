"""The command line: ``poad train | plan | eval | play | generalize | verify | export | ...``.

Only parsing lives here; what a command does is in the module it calls, loaded when it is called, so
that ``poad --help`` costs no torch.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tyro

from poad.cli.config_command import ConfigOptions, show_config
from poad.cli.options import (
    EnvsOptions,
    EvalOptions,
    ExportOptions,
    GeneralizeOptions,
    PlanOptions,
    PlayOptions,
    SandboxOptions,
    StudyOptions,
    TrainOptions,
    VerifyOptions,
)
from poad.config import Config, load, parse_value, whole_number
from poad.errors import ConfigError, PoadError, did_you_mean

_OVERVIEW = """\
poad: train language agents by reinforcement learning, with credit for every token

  poad train        train an agent in a text world
  poad plan         predict memory and time of a training before anything is loaded
  poad config       print a configuration in full
  poad eval         examine a trained agent, sampled and greedy
  poad play         watch an agent turn by turn, or play yourself
  poad generalize   examine an agent in worlds it was not trained in
  poad study        many runs, worlds × methods × seeds, and one honest table
  poad verify       check the theory and our estimators on problems with exact answers
  poad export       write what a run learned as a model that others load
  poad envs         list the worlds, read a world's manual page, check a world of your own
  poad sandbox      check what this machine offers to run an agent's programs in

Start here:
  poad train                                             tomato salad by POAD, a few seconds
  poad train --config configs/tomato_lettuce_salad.yaml  a complete configuration from a file
  poad train --env poad/TomatoSalad-v0 --credit.method twosome --seed 1
  poad play runs/tomato-salad-poad-seed0

Each command explains itself: poad train --help
"""


def _train(options: TrainOptions) -> int:
    from poad.workflows import free_path, resume_run, train_run

    if options.resume is not None:
        if options.run is not None or options.config is not None:
            raise ConfigError(
                "--resume takes the run's own directory and configuration; "
                "leave out --run and --config."
            )
        return resume_run(options.resume, options.settings, quiet=options.quiet)
    path = options.run or free_path(options.settings)
    return train_run(options.settings, path, quiet=options.quiet)


def _plan(options: PlanOptions) -> int:
    from poad.plan import show
    from poad.workflows import check_world

    check_world(options.settings)
    return show(options.settings, options.memory, options.flops)


def _eval(options: EvalOptions) -> int:
    from poad.workflows import evaluate_run

    _positive(options.episodes)
    _a_seed(options.seed)
    if options.model is not None and (options.untrained or options.checkpoint is not None):
        raise ConfigError("--model replaces the weights; leave out --untrained and --checkpoint.")
    if options.language:
        return _language(options)
    if options.tasks or options.task_folder or options.limit is not None or options.text:
        raise ConfigError("--tasks, --task-folder, --limit and --text belong to --language.")
    return evaluate_run(
        options.run,
        options.episodes,
        checkpoint=options.checkpoint,
        untrained=options.untrained,
        seed=options.seed,
        env=options.env,
        env_args=options.env_args,
        model=options.model,
        quiet=options.quiet,
    )


def _language(options: EvalOptions) -> int:
    from poad.workflows import TASKS, examine_tasks, examine_text

    if options.env is not None or options.env_args or options.untrained:
        raise ConfigError(
            "--language plays no episodes and always looks at the untrained model too; leave out "
            "--env, --env-args and --untrained."
        )
    if options.limit is not None and options.limit < 1:
        raise ConfigError(f"--limit {options.limit}: must be above 0.")
    if options.text is None:
        tasks = options.tasks or TASKS
        if options.task_folder is not None and not options.tasks:
            raise ConfigError("--task-folder: name the tasks in it to examine, with --tasks.")
        return examine_tasks(
            options.run,
            tasks,
            checkpoint=options.checkpoint,
            model=options.model,
            limit=options.limit,
            folder=options.task_folder,
        )
    if options.tasks or options.task_folder is not None or options.limit is not None:
        raise ConfigError("--text stands for itself; leave out --tasks, --task-folder and --limit.")
    return examine_text(
        options.run, options.text, checkpoint=options.checkpoint, model=options.model
    )


def _play(options: PlayOptions) -> int:
    is_run = Path(options.target).is_dir() or not _names_a_world(options.target)
    _a_seed(options.seed)
    if is_run and options.env_args:
        raise ConfigError("--env-args belong to a world; a run has its own (see `poad eval`).")
    if not is_run and (options.checkpoint is not None or options.untrained):
        raise ConfigError("--checkpoint and --untrained belong to a run; a world has neither.")
    if options.human:
        from poad.cli.play import play_human

        if is_run:
            raise ConfigError(f"{options.target} is no world; --human wants one: see `poad envs`.")
        return play_human(options.target, options.env_args, options.seed or 0)
    from poad.cli.play import play_run, play_untrained

    if is_run:
        return play_run(
            Path(options.target),
            seed=options.seed,
            greedy=options.greedy,
            checkpoint=options.checkpoint,
            untrained=options.untrained,
        )
    config = Config(env=options.target, env_args=options.env_args)
    return play_untrained(config, seed=options.seed or 0, greedy=options.greedy)


def _generalize(options: GeneralizeOptions) -> int:
    from poad.envs import unseen_worlds
    from poad.workflows import generalize_run

    _positive(options.episodes)
    worlds = options.worlds or tuple(unseen_worlds())
    return generalize_run(
        options.run, options.beside, worlds, options.episodes, quiet=options.quiet
    )


def _study(options: StudyOptions) -> int:
    from poad.study import compare_studies, run_study

    if options.compare is not None:
        return compare_studies(*options.compare)
    if options.file is None:
        raise ConfigError("Name a study file (studies/ holds some), or two results to --compare.")
    if options.jobs < 0:
        raise ConfigError(f"--jobs {options.jobs}: must not be negative.")
    return run_study(
        options.file,
        out=options.out,
        jobs=options.jobs,
        smoke=options.smoke,
        only=options.only,
        quiet=options.quiet,
    )


def _verify(options: VerifyOptions) -> int:
    from poad.theory import verify_command

    return verify_command(
        states=options.states,
        actions=options.actions,
        depth=options.depth,
        problems=options.problems,
        seed=options.seed,
        out=options.out,
        quiet=options.quiet,
    )


def _export(options: ExportOptions) -> int:
    from poad.workflows import export_run

    return export_run(
        options.run, options.to, checkpoint=options.checkpoint, adapter=options.adapter
    )


def _a_seed(seed: int | None) -> None:
    if seed is not None and seed < 0:
        raise ConfigError(f"--seed {seed}: must not be negative.")


def _positive(episodes: int) -> None:
    if episodes < 1:
        raise ConfigError(f"--episodes {episodes}: must be above 0.")


def _names_a_world(target: str) -> bool:
    from poad.envs import known_worlds

    return ":" in target or target.startswith("poad/") or target in dict(known_worlds())


def _envs(options: EnvsOptions) -> int:
    from poad.cli.worlds import check_one, list_worlds, show_world

    if options.env is None:
        return list_worlds()
    if options.check:
        return check_one(options.env, options.env_args, options.aliased)
    return show_world(options.env, options.env_args)


def _sandbox(_: SandboxOptions) -> int:
    from poad.cli.worlds import check_sandbox

    return check_sandbox()


_COMMANDS: dict[str, tuple[type, Callable[[Any], int]]] = {
    "train": (TrainOptions, _train),
    "plan": (PlanOptions, _plan),
    "config": (ConfigOptions, show_config),
    "eval": (EvalOptions, _eval),
    "play": (PlayOptions, _play),
    "generalize": (GeneralizeOptions, _generalize),
    "study": (StudyOptions, _study),
    "verify": (VerifyOptions, _verify),
    "export": (ExportOptions, _export),
    "envs": (EnvsOptions, _envs),
    "sandbox": (SandboxOptions, _sandbox),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status: 0, 1 for a failure, 2 for a mistake, 130 for Ctrl-C."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_OVERVIEW, end="")
        return 0
    if arguments[0] == "--version":
        from poad.runs import versions

        print(f"poad {versions()['poad']}")
        return 0
    name, *rest = arguments
    if name not in _COMMANDS:
        hint = did_you_mean(name, _COMMANDS, 1)
        return _fail(f"There is no command {name!r}. {hint}There are: {', '.join(_COMMANDS)}.")
    warnings.showwarning = _show_warning
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a narrow encoding must not end a training
            stream.reconfigure(errors="replace")
    if os.getcwd() not in sys.path:  # so that --env my_module:MyWorld-v0 finds a local module
        sys.path.insert(0, os.getcwd())
    try:
        options_type, command = _COMMANDS[name]
        return command(_parse(name, options_type, rest))
    except KeyboardInterrupt:
        sys.stderr.write("\nInterrupted. What was written before is intact.\n")
        return 130
    except BrokenPipeError:  # `poad … | head`
        sys.stdout = None
        return 0
    except PoadError as error:
        return _fail(str(error))


def _parse(name: str, options_type: type, arguments: list[str]) -> Any:
    default = None
    if options_type in (TrainOptions, PlanOptions, ConfigOptions):
        base = Config()
        if (resumed := _value_of("--resume", arguments)) is not None:
            from poad.runs import Run

            base = Run.open(resumed).config
        elif (path := _value_of("--config", arguments)) is not None:
            base = load(path)
        elif options_type is ConfigOptions and arguments and not arguments[0].startswith("-"):
            base = load(arguments[0])
        default = options_type(settings=base)
    return tyro.cli(
        options_type,
        prog=f"poad {name}",
        args=arguments,
        default=default,
        registry=_registry(),
    )


def _value_of(flag: str, arguments: Sequence[str]) -> str | None:
    """What follows a flag, before tyro parses: defaults may come from there."""
    for i, argument in enumerate(arguments):
        if argument == flag and i + 1 < len(arguments):
            return arguments[i + 1]
        if argument.startswith(f"{flag}="):
            return argument.partition("=")[2]
    return None


def _registry() -> tyro.constructors.ConstructorRegistry:
    """Teach tyro to read `--env-args name=value …` with YAML values, and integers such as 1e4."""
    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def named_values(info: tyro.constructors.PrimitiveTypeInfo):
        if info.type != dict[str, Any] and info.type_origin is not dict:
            return None

        def read(arguments: list[str]) -> dict[str, Any]:
            values = {}
            for argument in arguments:
                name, equals, value = argument.partition("=")
                if not (name and equals):
                    raise ValueError(f"expected name=value, not {argument!r}")
                values[name] = parse_value(value)
            return values

        return tyro.constructors.PrimitiveConstructorSpec(
            nargs="*",
            metavar="NAME=VALUE ...",
            instance_from_str=read,
            is_instance=lambda value: isinstance(value, dict),
            str_from_instance=lambda value: [f"{k}={v}" for k, v in value.items()],
        )

    @registry.primitive_rule
    def integers(info: tyro.constructors.PrimitiveTypeInfo):
        if info.type is not int:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="INT",
            instance_from_str=lambda arguments: whole_number(arguments[0]),
            is_instance=lambda value: isinstance(value, int),
            str_from_instance=lambda value: [str(value)],
        )

    return registry


def _show_warning(message: Warning | str, category: type[Warning], *_: Any) -> None:
    """One calm line for our own warnings; those of libraries are for their developers."""
    if category is UserWarning:
        sys.stderr.write(f"poad: note: {message}\n")


def _fail(message: str) -> int:
    sys.stderr.write(f"poad: {message}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main())
