"""The command line: `srkit run`, `make`, `status`, `forecast`, `bench` and others.

Thin; see the modules.

`run` executes the numbered notebooks with papermill, in order, and skips those whose steps are
all finished. Executed copies go into the study. `make` makes the same steps without notebooks, in
one process or, under a launcher, in several.

    srkit run --preset tiny --study runs/try
"""

from __future__ import annotations

import json
import shlex
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from srkit.config import SrkitError
from srkit.distributed import first, rank, world
from srkit.escape import visible
from srkit.plan import PAPER_ARM, notebooks

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"


class Interrupted(BaseException):
    """The run was told to end by a signal: its number."""


class Commands(TyperGroup):
    """Commands that let Ctrl-C out to `main`; typer would say "Aborted!" and no more."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            raise Interrupted(*(stop.args or (signal.SIGINT,))) from None


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A reproducible study of Self-Rewarding Language Models, as numbered notebooks.",
)
StudyArgument = Annotated[Path, typer.Argument(help="The study's folder, e.g. runs/first.")]
StudyOption = Annotated[Path, typer.Option(help="Folder of the study.")]
PresetOption = Annotated[str, typer.Option(help="Settings of a new study: tiny, cpu, ...")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="A setting, e.g. dpo.beta=0.2. Repeatable.")
]
ArmOption = Annotated[
    str, typer.Option(help=f"Arms, separated by commas; if none was begun, {PAPER_ARM}.")
]
IterationsOption = Annotated[int | None, typer.Option(help="2: M1 to M3.")]
JsonOption = Annotated[bool, typer.Option("--json", help="The whole record as JSON.")]
ChangeOption = Annotated[bool, typer.Option(help="Let new settings replace the study's own.")]
FIRST = Path("runs/first")
KEPT = "What was made is kept; the same command goes on from there."


@app.command()
def run(
    study: StudyOption = FIRST,
    preset: PresetOption = "",
    set_: SetOption = None,
    arm: ArmOption = "",
    iterations: IterationsOption = None,
    only: Annotated[str, typer.Option(help="Only notebooks whose name starts so, e.g. 04.")] = "",
    change: ChangeOption = False,
) -> None:
    """Run the series of notebooks, or what is missing of it."""
    from srkit.study import Study

    if world() > 1:
        raise SrkitError(
            "Notebooks run in one process. Under a launcher use `srkit make`, which makes the same "
            "steps; `srkit run`, without a launcher, then executes the notebooks and finds them."
        )
    opened = Study.open(study, preset, _overrides(set_, iterations), arm, change, save=False)
    runs = [n for n in notebooks(opened.config, opened.arms) if n.startswith(only)]
    if not runs:
        raise SrkitError(f"No notebook's name starts with {only!r}. They are in {NOTEBOOKS}.")
    opened.save_settings()
    typer.echo(f"Study {opened.path}, preset {opened.config.preset}, {len(runs)} notebooks.")
    with _alone(opened, runs):
        ahead = _look_ahead(opened)
        executed = sum(_run_notebook(opened, name, ahead.get(name, "")) for name in runs)
    if not executed:
        typer.echo("Everything was finished already: no model was loaded, nothing was made again.")
    typer.echo(_closing(opened.path))


@app.command()
def make(
    step: Annotated[
        list[str] | None, typer.Argument(help="Steps, as in `srkit status`; none: all.")
    ] = None,
    study: StudyOption = FIRST,
    preset: PresetOption = "",
    set_: SetOption = None,
    arm: ArmOption = "",
    iterations: IterationsOption = None,
    change: ChangeOption = False,
) -> None:
    """Make the missing steps of a study without notebooks, also in several processes."""
    from srkit.series import make_step
    from srkit.study import Study

    overrides = _overrides(set_, iterations)
    opened = first(lambda: Study.open(study, preset, overrides, arm, change, save=False))
    names = [opened.step(name).name for name in step or opened.steps]
    first(opened.save_settings)
    states = first(opened.states)
    with ExitStack() as held:
        if any(states[name] != "done" for name in names):
            first(lambda: held.enter_context(opened.running()))
        for name in names:
            began, state = time.monotonic(), first(lambda name=name: opened.state(name))
            if state != "done":
                make_step(opened, name)
                state = f"made in {time.monotonic() - began:.1f} s ({state})"
            if rank() == 0:
                typer.echo(f"  {name}: {state}")


def _overrides(settings: list[str] | None, iterations: int | None) -> str:
    count = [] if iterations is None else [f"iterations={iterations}"]
    return shlex.join([*(settings or []), *count])


def _look_ahead(study) -> dict[str, str]:
    """What each notebook's unfinished steps will take, in words; refuses what cannot fit."""
    from srkit import forecast

    todo = {name for name, state in study.states().items() if state != "done"}
    if not todo:
        return {}
    try:
        here = forecast.machine(study.path, study.config.model.device)
        found = forecast.forecast(study.config, study.arms, study, here=here)
        if not forecast.too_much(found, here) and (speed := _measured_speed(study.config, here)):
            found = forecast.forecast(study.config, study.arms, study, speed, here)
    except (SrkitError, LookupError) as error:  # a run does not stop for want of a forecast
        typer.echo(f"No forecast: {error}")
        return {}
    left = [one for one in found if one.step in todo]
    if refusal := forecast.too_much(left, here):
        raise SrkitError(f"The study {study.path} cannot run here: {refusal}")
    if warning := forecast.tight(left, here):
        typer.echo(f"Warning: {warning}")
    study.keep_forecast({one.step: one.record() for one in found})
    names = dict.fromkeys(one.notebook for one in left)
    return {n: forecast.in_words([one for one in left if one.notebook == n]) for n in names}


def _alone(study, runs: list[str]):
    """Hold the study for a run of notebooks; a finished one is not locked, and may be read-only."""
    done = all(study.notebook_state(name, _source(name)) == "done" for name in runs)
    return nullcontext() if done else study.running()


def _source(name: str) -> Path:
    source = NOTEBOOKS / f"{name.partition('-')[0]}.ipynb"
    if not source.exists():
        raise SrkitError(
            f"There is no notebook {source}; srkit runs from a clone of its repository."
        )
    return source


def _run_notebook(study, name: str, ahead: str = "") -> bool:
    """Execute one notebook unless its work is done; whether it ran. `ahead`: what it will take."""
    source, which = _source(name), name.partition("-")[2]
    state = study.notebook_state(name, source)
    if state == "done":
        typer.echo(f"  {name}: done")
        return False
    typer.echo(f"  {name}: running ({state}){ahead and f', {ahead}'}")
    parameters: dict[str, str | int] = {"study": str(study.path.resolve())}
    if which:
        arm, _, iteration = which.rpartition("-")
        parameters |= {"arm": arm, "iteration": int(iteration)}
    began = time.monotonic()
    _execute(source, study.path / "notebooks" / f"{name}.ipynb", parameters)
    study.record_notebook(name, source, time.monotonic() - began)
    typer.echo(f"  {name}: finished in {time.monotonic() - began:.0f} s")
    return True


def _execute(source: Path, target: Path, parameters: dict[str, str | int]) -> None:
    """Run a notebook with papermill; an error inside becomes one paragraph.

    Raises: SrkitError with the notebook's own message.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    from srkit.disk import writing

    try:
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            papermill.execute_notebook(
                str(source),
                str(target),
                parameters=parameters,
                kernel_name="python3",
                progress_bar=False,
                stderr_file=sys.stderr,
                cwd=str(NOTEBOOKS),
                # one warning a kernel, about encrypting what never leaves this machine
                extra_arguments=["--IPKernelApp.log_level=40"],
            )
    except PapermillExecutionError as error:
        what = "" if error.ename == "SrkitError" else f" ({error.ename})"
        raise SrkitError(
            f"{source.stem} stopped{what}: {error.evalue}\nThe executed copy is {target}. What was "
            "made is kept; the same command goes on from there."
        ) from None
    except DeadKernelError:
        raise SrkitError(
            f"The kernel of {source.stem} died, most likely for want of memory. Smaller "
            "sft.micro_batch, dpo.micro_batch, candidates.chunk or judge.chunk need less. What was "
            "made is kept; the same command goes on from there."
        ) from None


def _closing(path: Path) -> str:
    """What there is to look at."""
    figures = sorted((path / "figures").glob("*.png"))
    report = path / "report.html"
    lines = [f"Figures ({len(figures)}, each as png, svg, pdf and csv):"] if figures else []
    lines += [f"  {figure}" for figure in figures]
    lines += [f"Report: {report}"] if report.exists() else []
    return "\n".join(lines or [f"See `srkit status {path}` for what is made and what is missing."])


@app.command()
def forecast(
    preset: Annotated[str, typer.Option(help="Settings of a study to come: tiny, cpu, ...")] = "",
    study: Annotated[Path | None, typer.Option(help="A study that is there.")] = None,
    set_: SetOption = None,
    json_: Annotated[bool, typer.Option("--json", help="As JSON, with all parts.")] = False,
) -> None:
    """Say what a study will take; measures this machine once, under a minute. Exit 1: no room."""
    from srkit import forecast as module
    from srkit.config import resolve
    from srkit.study import Study

    if bool(preset) == bool(study) or (study and set_):
        raise SrkitError("Give --preset (with --set), or the --study that is to be forecast.")
    opened = Study.open(study) if study else None
    config = opened.config if opened else resolve(preset, shlex.join(set_ or []))
    here = module.machine(opened.path if opened else Path(), config.model.device)
    arms = opened.arms if opened else (PAPER_ARM,)
    found = module.forecast(config, arms, opened, here=here)
    refusal = module.too_much(found, here)
    if not refusal and (speed := _measured_speed(config, here)):
        found = module.forecast(config, arms, opened, speed, here)
    if opened:
        opened.keep_forecast({one.step: one.record() for one in found})
    _print_forecast(module, found, config, here, json_)
    if refusal:
        raise SrkitError(f"This cannot run here: {refusal}")


def _measured_speed(config, here):
    """Of the config's model, measured now if it was not before; None if it cannot be here."""
    from srkit.speed import cached, measurable, measure

    if (speed := cached(config.model)) or not measurable(config.model, here.device):
        return speed
    typer.echo("Measuring this machine, once: under a minute.", err=True)
    return measure(config.model)


def _print_forecast(module, found: list, config, here, as_json: bool) -> None:
    shape, totals = module.shape_of(config.model), module.total(found)
    device, dtype = module.placement(config.model, here)
    if as_json:
        steps = [module.as_row(one, shape, config.model) for one in found]
        what = {"preset": config.preset, "model": config.model.name, "device": device}
        typer.echo(json.dumps({**what, "dtype": dtype, "total": totals, "steps": steps}, indent=1))
        return
    adapter = shape.adapter_parameters(config.model)
    weights = dtype if config.model.quantization == "none" else config.model.quantization
    typer.echo(
        f"{config.model.name}: {shape.parameters / 1e6:,.0f} M parameters, adapter "
        f"{adapter / 1e6:,.1f} M; {weights} weights, computed in {dtype} on {device}."
    )
    typer.echo("\n".join(module.table(found)))
    need = max(one.memory.required for one in found) / 1e9
    typer.echo(
        f"In all: {module.in_words(found)} at full batches (at least {need:.1f} GB), "
        f"{totals['disk_mb']:,} MB of adapters on disk."
    )
    if found[0].seconds is None:
        typer.echo("No seconds: the model or its device is not on this machine.")
    if warning := module.tight(found, here):
        typer.echo(f"Warning: {warning}")


@app.command()
def status(
    study: StudyArgument,
    json_: Annotated[bool, typer.Option("--json", help="As JSON, with all hashes.")] = False,
) -> None:
    """List every step of a study: its state, rows, seconds (and those forecast) and hashes."""
    from srkit.study import Study

    opened = Study.open(study)
    records, states = opened.records(), opened.states()
    steps = [{"step": n, "state": s, **_record(records.get(n))} for n, s in states.items()]
    if json_:
        typer.echo(json.dumps({"study": str(opened.path), "steps": steps}, indent=1))
        return
    for step in steps:
        rows = "" if step.get("rows") is None else f"{step['rows']} rows"
        seconds = "" if step.get("seconds") is None else f"{step['seconds']:.1f} s"
        made = step["state"] == "done"  # what was forecast afterwards is no forecast
        ahead = step.get("forecast") if made else opened.expected(opened.step(step["step"]))
        expected = (ahead or {}).get("seconds")
        seconds += "" if expected is None else f" ({expected:.0f} s forecast)"
        sha = next(iter(step.get("outputs", {}).values()), "")[:12]
        typer.echo(f"{step['step']:<40} {rows:>10} {seconds:>24}  {sha:<12}  {step['state']}")


def _record(record: dict | None) -> dict:
    names = ("rows", "seconds", "tokens", "outputs", "inputs", "peak_memory_mb", "made_at")
    names += ("forecast",)
    return {name: (record or {}).get(name) for name in names if record}


@app.command()
def doctor() -> None:
    """Check this machine: packages, memory, GPU, the embedded model, the Jupyter kernel."""
    from srkit.doctor import findings

    found = findings()
    for good, text in found:
        typer.echo(f"{'ok  ' if good else 'MISS'}  {text}")
    raise typer.Exit(0 if all(good for good, _ in found) else 1)


@app.command()
def figures(study: StudyArgument) -> None:
    """Draw all figures of a study again, and write its main tables, from its tables alone."""
    from srkit.drawings import draw_figures
    from srkit.study import Study
    from srkit.tables import write_tables

    opened = Study.open(study)
    for name in draw_figures(opened):
        typer.echo(f"{opened.path / 'figures' / name}.png .svg .pdf .csv")
    for stem in write_tables(opened):
        typer.echo(f"{stem}.csv .md .tex")


@app.command()
def report(study: StudyArgument) -> None:
    """Write report.html from the study's tables, if anything in it has changed."""
    from srkit.report import make_report
    from srkit.study import Study

    typer.echo(make_report(Study.open(study)))


@app.command()
def judge(
    study: StudyArgument,
    data: Annotated[str, typer.Option(help="Open Assistant messages: a file or a hub id.")],
    models: Annotated[str, typer.Option(help="Such as M0,M1; none: all that are trained.")] = "",
    method: Annotated[str, typer.Option(help="sampled or expected; else the study's.")] = "",
    samples: Annotated[int, typer.Option(min=0, help="K; 0: the study's.")] = 0,
    prompts: Annotated[int, typer.Option(min=0, help="Only the first so many; 0: all.")] = 0,
    out: Annotated[Path | None, typer.Option(help="A folder; else beside the study.")] = None,
    json_: JsonOption = False,
) -> None:
    """Judge ranked replies of other data by models of a study, which is not changed."""
    from srkit.judge_data import judge_data, lines
    from srkit.study import Study

    opened = Study.open(study, save=False)
    names = [name.strip() for name in models.split(",") if name.strip()]
    found = judge_data(opened, data, names, method, samples, prompts, out)
    if json_:
        typer.echo(json.dumps(found.record(), indent=1))
        return
    for name, value in found.about.items():
        typer.echo(f"{name.replace('_', ' ')}: {visible(str(value))}")
    for line in lines(found.table):
        typer.echo(line)


bench = typer.Typer(
    no_args_is_help=True,
    help="Hold the kit against other ways: do engines agree, and how fast are they?",
)
app.add_typer(bench, name="bench")
BenchPreset = Annotated[str, typer.Option(help="The model is this preset's.")]
RoundsOption = Annotated[int, typer.Option(min=1, help="Turns; of each the best is kept.")]
FullOption = Annotated[bool, typer.Option(help="Larger sizes: two to three minutes a round.")]
FolderOption = Annotated[Path | None, typer.Option(help="Instead of data/benchmarks.")]


WORKLOADS = {
    "judge": "Judgements: long prompts with one rubric, K samples of each.",
    "generate": "Candidates: short prompts, N samples of each.",
    "train": "DPO on short pairs, against TRL's defaults.",
}


def _measures(kind: str) -> Callable[..., None]:
    def command(
        preset: BenchPreset = "cpu",
        rounds: RoundsOption = 1 if kind == "train" else 2,
        full: FullOption = False,
        json_: JsonOption = False,
        folder: FolderOption = None,
    ) -> None:
        from srkit import bench, bench_train

        if kind == "train":
            record = bench_train.measure_training(preset, rounds, full)
        else:
            record = bench.measure_generation(kind, preset, rounds, full)
        bench.append(record, folder or bench.FOLDER)
        typer.echo(json.dumps(record, indent=1) if json_ else bench.render(record))

    return command


for _kind, _about in WORKLOADS.items():
    bench.command(_kind, help=_about)(_measures(_kind))


@bench.command("table")
def bench_table(
    folder: FolderOption = None,
    write: Annotated[Path | None, typer.Option(help="Put it between a file's marks.")] = None,
) -> None:
    """The latest runs as Markdown, as they stand in data/benchmarks/README.md."""
    from srkit.bench import FOLDER, put, table

    text = table(folder or FOLDER)
    if write is None:
        typer.echo(text)
    else:
        put(text, write)


@bench.command("parity")
def bench_parity(
    study: Annotated[Path | None, typer.Option(help="Its M0 and its last trained model.")] = None,
    preset: Annotated[
        str, typer.Option(help="Without a study: its model, and a random adapter on it.")
    ] = "cpu",
    engines: Annotated[
        str, typer.Option(help="Of hf, vllm, endpoint, with commas; if empty, those installed.")
    ] = "",
    models: Annotated[str, typer.Option(help="Models of the study, with commas.")] = "",
) -> None:
    """Do engines answer as plain transformers does? Greedy texts and log-probabilities."""
    from tempfile import TemporaryDirectory

    from srkit import parity
    from srkit.study import Study

    with TemporaryDirectory() as folder:
        opened = Study.open(study) if study else parity.stand_in(preset, Path(folder))
        found = parity.compare(opened, _words(engines), _words(models))
    for row in found:
        ties = f", {row.ties} near ties" if row.ties else ""
        said = "differs" if row.problems else "agrees"
        typer.echo(
            f"{row.model:<20} {row.engine:<9} {said}: {len(parity.TEXTS)} greedy texts, "
            f"log-probabilities within {row.difference:.2g} (allowed: {row.tolerance:g}){ties}"
        )
        for problem in row.problems:
            typer.echo(f"  {problem}")
    raise typer.Exit(1 if any(row.problems for row in found) else 0)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def main() -> None:
    """Run the command line; errors of the kit are one paragraph and exit code 1.

    Ctrl-C and SIGTERM end with what they cost, and 128 more than the signal's number.
    """
    if world() == 1:  # several wait for one another deep in torch, where only a kill is heard
        signal.signal(signal.SIGTERM, _terminated)
    try:
        app()
    except Interrupted as stop:
        _stop(f"stopped by {signal.Signals(stop.args[0]).name}. {KEPT}", 128 + stop.args[0])
    except SrkitError as error:
        _stop(str(error))
    except OSError as error:
        _stop(f"{error.strerror}: {error.filename}. {KEPT}")
    except RuntimeError as error:
        if world() == 1 or "peer" not in str(error):  # as torch says that a connection broke
            raise
        _stop(
            "Another process of this run has ended. If it does not say why, it was killed, most "
            f"likely for want of memory: see the launcher's last lines. {KEPT}"
        )


def _terminated(number: int, frame: object) -> None:
    raise KeyboardInterrupt(number)  # what cleans up after Ctrl-C then does so here as well


def _stop(why: str, code: int = 1) -> None:
    if rank():
        time.sleep(5)  # where all fail alike, the first one tells, and the launcher ends this one
    typer.echo(f"srkit: {visible(why)}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
