"""The command line: one program, one verb per thing a user does.

Exit codes: 0 done, 1 failed while working, 2 refused before anything started (configuration,
arguments, resources), 130 and 143 ended by Ctrl-C and SIGTERM. Heavy libraries are imported inside
the verbs, so that `--help` and a wrong config answer at once.
"""

from __future__ import annotations

import enum
import json
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from fleetstep import __version__
from fleetstep.errors import FleetstepError
from fleetstep.orchestration.termination import TERMINATED, is_terminated, sigterm_as_exit

_INTERRUPTED = 130
_MINUTE_S = 60.0

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Train, tune and evaluate fast diffusion models on a Ray cluster.",
)
data_app = typer.Typer(no_args_is_help=True, help="Pack and check datasets.")
pack_app = typer.Typer(
    no_args_is_help=True, help="Pack images into WebDataset shards with a manifest."
)
import_app = typer.Typer(
    no_args_is_help=True, help="Make snapshots of weights that other software wrote."
)
amed_app = typer.Typer(
    no_args_is_help=True, help="Train a predictor that makes a solver of few calls better (AMED)."
)
export_app = typer.Typer(no_args_is_help=True, help="Hand a trained network to other software.")
app.add_typer(data_app, name="data")
data_app.add_typer(pack_app, name="pack")
app.add_typer(import_app, name="import")
app.add_typer(amed_app, name="amed")
app.add_typer(export_app, name="export")


class Resume(enum.StrEnum):
    """What to do about checkpoints that are there."""

    AUTO = "auto"
    MUST = "must"
    NEVER = "never"


Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Out = Annotated[Path, typer.Option("--out", help="Dataset folder to make; must not exist.")]
ShardSize = Annotated[int, typer.Option("--shard-size", min=1, help="Samples per shard.")]
HeldOut = Annotated[
    float,
    typer.Option("--heldout", min=0, max=0.5, help="Share held out, chosen by content hash."),
]
Flip = Annotated[
    bool | None,
    typer.Option(
        "--flip/--no-flip", help="Whether a mirrored image is a valid sample.", show_default=False
    ),
]
Encoding = Annotated[
    Literal["npy", "png"],
    typer.Option("--encoding", help="npy reads about ten times faster, png takes less space."),
]
Imported = Annotated[Path, typer.Option("--out", help="Snapshot folder to make; must not exist.")]
Reference = Annotated[
    Path | None,
    typer.Option(
        "--data", help="Packed dataset that sweeps compare its samples with.", show_default=False
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Overrides such as training.images=200000", show_default=False),
]


def main() -> None:
    """Entry point of the console script."""
    guarded(app)


def guarded(program: Callable[[], object]) -> None:
    """Run a program; an error of ours becomes one clear message and its exit code. SIGTERM ends it
    in order, as Ctrl-C does: requests are withdrawn, actors ended, and what was finished is kept.
    """
    try:
        with sigterm_as_exit():
            program()
    except FleetstepError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except (KeyboardInterrupt, SystemExit) as end:
        terminated = is_terminated(end)
        # Typer makes SystemExit(130) of Ctrl-C, without a word.
        if isinstance(end, SystemExit) and not terminated and end.code != _INTERRUPTED:
            raise
        what = "ended by SIGTERM" if terminated else "interrupted"
        print(f"{what}; the same command goes on where this one stopped", file=sys.stderr)
        raise SystemExit(TERMINATED if terminated else _INTERRUPTED) from None


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


# --- data ----------------------------------------------------------------------------------------


@pack_app.command("digits")
def pack_digits_verb(out: Out, shard_size: ShardSize = 500, json_: Json = False) -> None:
    """Pack scikit-learn's digits: 1,797 real 8x8 images, 10 classes, 1,500 to train and 297 held
    out.

    [dim]Example: fleetstep data pack digits --out data/digits[/dim]
    """
    from fleetstep.data.pack import pack_digits

    _say_packed(pack_digits(out, shard_size=shard_size), out, json_)


@pack_app.command("images")
def pack_images_verb(
    source: Annotated[Path, typer.Argument(help="Folder or zip; sub-folders are class labels.")],
    out: Out,
    size: Annotated[
        int, typer.Option("--size", min=1, help="Edge length in pixels of the packed squares.")
    ],
    crop: Annotated[
        Literal["center", "stretch"],
        typer.Option(help="Cut the largest square, or change the aspect ratio."),
    ] = "center",
    channels: Annotated[Literal["1", "3"], typer.Option(help="1 for grey, 3 for colour.")] = "3",
    shard_size: ShardSize = 1000,
    heldout: HeldOut = 0.05,
    encoding: Encoding = "npy",
    flip: Flip = None,
    json_: Json = False,
) -> None:
    """Pack a folder or zip of images, made square and resized.

    [dim]Example: fleetstep data pack images ~/flowers --size 64 --out data/flowers[/dim]
    """
    from fleetstep.data.pack import pack_images

    with _bar("packing") as progress:
        manifest = pack_images(
            source,
            out,
            size=size,
            crop=crop,
            channels=1 if channels == "1" else 3,
            shard_size=shard_size,
            heldout=heldout,
            encoding=encoding,
            flip=flip,
            progress=progress,
        )
    _say_packed(manifest, out, json_)


@pack_app.command("npz")
def pack_npz_verb(
    source: Annotated[
        Path,
        typer.Argument(
            help="npz with arrays `images` [N,H,W(,C)] uint8 and, if any, `labels` [N]."
        ),
    ],
    out: Out,
    heldout_npz: Annotated[
        Path | None,
        typer.Option(help="Another such file, held out whole in place of a share."),
    ] = None,
    shard_size: ShardSize = 1000,
    heldout: HeldOut = 0.05,
    encoding: Encoding = "npy",
    flip: Flip = None,
    json_: Json = False,
) -> None:
    """Pack arrays of images.

    [dim]Example: fleetstep data pack npz cifar10.npz --out data/cifar10 --flip[/dim]
    """
    from fleetstep.data.pack import pack_npz

    with _bar("packing") as progress:
        manifest = pack_npz(
            source,
            out,
            heldout_source=heldout_npz,
            shard_size=shard_size,
            heldout=heldout,
            encoding=encoding,
            flip=flip,
            progress=progress,
        )
    _say_packed(manifest, out, json_)


@pack_app.command("idx")
def pack_idx_verb(
    images: Annotated[Path, typer.Argument(help="train-images-idx3-ubyte(.gz)")],
    labels: Annotated[Path, typer.Argument(help="train-labels-idx1-ubyte(.gz)")],
    out: Out,
    heldout_images: Annotated[
        Path | None,
        typer.Option(help="t10k-images-idx3-ubyte(.gz), held out whole in place of a share."),
    ] = None,
    heldout_labels: Annotated[
        Path | None, typer.Option(help="t10k-labels-idx1-ubyte(.gz)")
    ] = None,
    shard_size: ShardSize = 1000,
    heldout: HeldOut = 0.05,
    encoding: Encoding = "npy",
    flip: Flip = None,
    json_: Json = False,
) -> None:
    """Pack the MNIST family's files.

    [dim]Example: fleetstep data pack idx train-images-idx3-ubyte.gz train-labels-idx1-ubyte.gz
    --out data/mnist[/dim]
    """
    from fleetstep.data.pack import pack_idx

    with _bar("packing") as progress:
        manifest = pack_idx(
            images,
            labels,
            out,
            heldout_images=heldout_images,
            heldout_labels=heldout_labels,
            shard_size=shard_size,
            heldout=heldout,
            encoding=encoding,
            flip=flip,
            progress=progress,
        )
    _say_packed(manifest, out, json_)


@data_app.command("verify")
def verify_verb(
    path: Annotated[Path, typer.Argument(help="Dataset folder.")], json_: Json = False
) -> None:
    """Check every shard and sample of a dataset against its manifest.

    [dim]Example: fleetstep data verify data/digits[/dim]
    """
    from fleetstep.data.stream import verify

    report = verify(path)
    if json_:
        _print_json(
            {"samples": report.samples, "shards": report.shards, "problems": list(report.problems)}
        )
    else:
        print(
            f"{path}: {report.shards} shards, {report.samples} samples, "
            f"{len(report.problems)} problems"
        )
        for problem in report.problems:
            print(f"  - {problem}")
    if report.problems:
        raise typer.Exit(1)


# --- import --------------------------------------------------------------------------------------


@import_app.command("edm")
def import_edm_verb(
    source: Annotated[Path, typer.Argument(help="Network pickle of EDM or FDM.")],
    out: Imported,
    data: Reference = None,
    json_: Json = False,
) -> None:
    """Import a network pickle of EDM or FDM (DDPM++, NCSN++) without running it.

    [dim]Example: fleetstep import edm edm-cifar10-32x32-cond-vp.pkl --out runs/edm-cifar10[/dim]
    """
    from fleetstep.networks.foreign.edm import read_edm_pickle
    from fleetstep.orchestration.importing import write_import

    _say_imported(write_import(read_edm_pickle(source), source, out, data=data), json_)


@import_app.command("dit")
def import_dit_verb(
    source: Annotated[Path, typer.Argument(help="State dict of a DiT: .pt or .safetensors.")],
    out: Imported,
    heads: Annotated[
        int | None,
        typer.Option(min=1, help="Attention heads of an unpublished size.", show_default=False),
    ] = None,
    data: Reference = None,
    json_: Json = False,
) -> None:
    """Import the state dict of a DiT.

    [dim]Example: fleetstep import dit DiT-XL-2-256x256.pt --out runs/dit-xl-2[/dim]
    """
    from fleetstep.networks.foreign.dit import read_dit
    from fleetstep.orchestration.importing import write_import

    _say_imported(write_import(read_dit(source, heads), source, out, data=data), json_)


@import_app.command("diffusers")
def import_diffusers_verb(
    source: Annotated[Path, typer.Argument(help="Folder of a DDPM pipeline or a UNet2DModel.")],
    out: Imported,
    data: Reference = None,
    json_: Json = False,
) -> None:
    """Import a diffusers folder with safetensors (needs the extra `hub`).

    [dim]Example: fleetstep import diffusers ddpm-cifar10-32 --out runs/ddpm-cifar10[/dim]
    """
    from fleetstep.networks.foreign.diffusers_folder import read_diffusers
    from fleetstep.orchestration.importing import write_import

    _say_imported(write_import(read_diffusers(source), source, out, data=data), json_)


# --- export --------------------------------------------------------------------------------------


@export_app.command("mlflow")
def export_mlflow_verb(
    source: Annotated[Path, typer.Argument(help="Run folder (its last snapshot) or a snapshot.")],
    register: Annotated[
        str | None,
        typer.Option(help="Registered model to add a version to.", show_default=False),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="Whose best value is the version's score: a kind or a full name; fd by default.",
            show_default=False,
        ),
    ] = None,
    ema: Annotated[str, typer.Option(help="EMA track that is drawn from.")] = "ema",
    json_: Json = False,
) -> None:
    """Log a snapshot as an MLflow model that samples, in the tracker of its run.

    [dim]Example: fleetstep export mlflow runs/digits-edm --register digits[/dim]
    """
    from fleetstep.orchestration.logged_models import export_to_mlflow

    exported = export_to_mlflow(source, register=register, metric=metric, ema=ema)
    _print_json(exported.as_dict()) if json_ else print(exported.text())


# --- train, sample, sweep, compare, doctor -------------------------------------------------------


@app.command()
def train(
    preset: Annotated[Path, typer.Argument(help="Experiment file; see pipelines/presets.")],
    overrides: Overrides = None,
    resume: Annotated[
        Resume, typer.Option(help="auto: go on if there is a checkpoint; must; never.")
    ] = Resume.AUTO,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would run, then stop.")
    ] = False,
    json_: Json = False,
) -> None:
    """Train one model.

    [dim]Example: fleetstep train pipelines/presets/digits-edm.yaml cluster.workers=2
    training.images=100000[/dim]
    """
    from fleetstep.config import Experiment, load

    experiment = load(Experiment, preset, overrides or [], data_required=not dry_run)
    from fleetstep.orchestration.preview import preview_training

    preview = preview_training(experiment)
    if dry_run:
        _print_json(preview.as_dict()) if json_ else print(preview.text())
        return
    if not json_:
        print(preview.summary())
    from fleetstep.orchestration.fit import fit

    result = fit(experiment, resume=resume.value, say=None if json_ else print)
    if json_:
        _print_json(result.as_dict())
    else:
        print(result.text())


@app.command()
def sample(
    source: Annotated[Path, typer.Argument(help="Run folder, snapshot folder, or exact:DATASET.")],
    out: Annotated[Path, typer.Option("--out", help="PNG grid to write.")] = Path("samples.png"),
    solver: Annotated[
        str,
        typer.Option(
            help="Settings such as '{kind: ipndm, order: 3}', amed:FOLDER for a predictor, or a "
            "kind: euler (ddim), heun, heun_ab, dpm2, edm_ablation, ipndm, ipndm_v (lms), deis, "
            "plms, pndm, dpmpp (dpmpp_2m, dpmpp_3m, dpm_solver), dpmpp_singlestep, unipc, ddpm, "
            "dpmpp_sde, accelerated_ddim, accelerated_ddpm, rk45. See `fleetstep solvers`."
        ),
    ] = "heun",
    nfe: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Network calls per image; 35, or a predictor's own. rk45 takes none.",
            show_default=False,
        ),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            help="Kind or settings, for example logsnr or '{kind: polynomial, rho: 5}', in place "
            "of the solver's own.",
            show_default=False,
        ),
    ] = None,
    afs: Annotated[bool, typer.Option("--afs", help="Analytical first step.")] = False,
    denoise_to_zero: Annotated[
        bool, typer.Option("--denoise-to-zero", help="End with one more call, D(x; sigma_min).")
    ] = False,
    seeds: Annotated[str, typer.Option(help="First and last seed, for example 0-63.")] = "0-63",
    ema: Annotated[str, typer.Option(help="EMA track.")] = "ema",
    labels: Annotated[str, typer.Option(help="random or balanced.")] = "balanced",
    guidance: Annotated[
        float | None,
        typer.Option(
            help="Scale of classifier-free guidance, for example 1.5.", show_default=False
        ),
    ] = None,
    guidance_channels: Annotated[
        Literal["all", "first_three"],
        typer.Option(help="Channels that are guided; DiT was released with first_three."),
    ] = "all",
    npz: Annotated[
        Path | None,
        typer.Option(help="Also write images and labels as arrays; needed for latents."),
    ] = None,
    json_: Json = False,
) -> None:
    """Draw images from a snapshot; image i depends on seed i alone.

    [dim]Example: fleetstep sample runs/digits-edm --solver dpmpp_2m --nfe 9 --seeds 0-99 --out
    grid.png[/dim]
    """
    from fleetstep.config.solver_text import parse_solver

    chosen = parse_solver(solver, schedule=schedule, afs=afs, denoise_to_zero=denoise_to_zero)
    from fleetstep.orchestration.sample import parse_guidance, sample_to_files

    result = sample_to_files(
        source,
        out=out,
        solver=chosen,
        nfe=nfe,
        seeds=seeds,
        ema=ema,
        labels=labels,
        guidance=parse_guidance(guidance, guidance_channels),
        npz=npz,
        say=None if json_ else print,
    )
    _print_json(result) if json_ else print(
        f"{result['images']} images by {result['solver']} ({result['schedule']}), "
        f"{result['nfe']:g} network calls each: {result['grid'] or result['npz']}"
    )


@app.command()
def solvers(json_: Json = False) -> None:
    """List every solver: order of convergence, cost, default schedule and settings.

    [dim]Example: fleetstep solvers[/dim]
    """
    from fleetstep.sampling.catalogue import catalogue

    entries = [entry.as_dict() for entry in catalogue()]
    if json_:
        _print_json(entries)
        return
    from fleetstep.reporting.tables import solver_table

    _print_tables([solver_table(entries)])


@app.command()
def sweep(
    preset: Annotated[
        str | None,
        typer.Argument(
            help="Sweep file; see pipelines/presets. None: the options and overrides alone.",
            show_default=False,
        ),
    ] = None,
    overrides: Overrides = None,
    run: Annotated[
        list[str] | None,
        typer.Option(
            help="Run or snapshot folder, or exact:FOLDER for the exact denoiser of a dataset; "
            "may be repeated, as may the following.",
            show_default=False,
        ),
    ] = None,
    solver: Annotated[
        list[str] | None,
        typer.Option(
            help="Kind, settings such as '{kind: ipndm, order: 3}', or amed:FOLDER.",
            show_default=False,
        ),
    ] = None,
    nfe: Annotated[
        list[int] | None, typer.Option(help="Network calls per image.", show_default=False)
    ] = None,
    schedule: Annotated[
        list[str] | None,
        typer.Option(help="Kind or settings, or own for each solver's own.", show_default=False),
    ] = None,
    guidance: Annotated[
        list[str] | None,
        typer.Option(help="Scale of classifier-free guidance, or none.", show_default=False),
    ] = None,
    ema: Annotated[list[str] | None, typer.Option(help="EMA track.", show_default=False)] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="fd, fd_z, fd_inf, kid, is, precision, recall, density, coverage, clip_score.",
            show_default=False,
        ),
    ] = None,
    extractor: Annotated[
        list[str] | None,
        typer.Option(help="fs-rn20, inception, dinov2, clip, or settings.", show_default=False),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(help="Images per cell, a multiple of 1,000.", show_default=False),
    ] = None,
    seed_blocks: Annotated[
        int | None, typer.Option(help="How often that many.", show_default=False)
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(help="clean, edm or adm: FID by these conventions.", show_default=False),
    ] = None,
    screen: Annotated[
        bool,
        typer.Option("--screen", help="Leave out cells that a few latents show to be worse."),
    ] = False,
    name: Annotated[str | None, typer.Option(help="Of the sweep.", show_default=False)] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the grid and its cost, then stop.")
    ] = False,
    json_: Json = False,
) -> None:
    """Score snapshots x solvers x NFE with parallel actors; finished units are never computed
    twice.

    [dim]Example: fleetstep sweep --run runs/digits-edm --solver dpmpp_2m --solver heun --nfe 5
    --nfe 9 --samples 2000[/dim]
    """
    from fleetstep.config.sweep_options import SweepOptions, sweep_from

    options = SweepOptions(
        run=run or (),
        solver=solver or (),
        nfe=nfe or (),
        schedule=schedule or (),
        guidance=guidance or (),
        ema=ema or (),
        metric=metric or (),
        extractor=extractor or (),
        samples=samples,
        seed_blocks=seed_blocks,
        protocol=protocol,
        screen=screen,
        name=name,
    )
    spec = sweep_from(preset, overrides or [], options)
    if dry_run:
        from fleetstep.orchestration.sweep_preview import preview_sweep

        preview = preview_sweep(spec)
        _print_json(preview.as_dict()) if json_ else print(preview.text())
        return
    from fleetstep.orchestration.sweep_job import closing_lines, run_sweep, tables

    result = run_sweep(spec, say=None if json_ else print, show=None if json_ else _print_table)
    if json_:
        _print_json([record.to_dict() for score in result.scores for record in score.records])
        return
    _print_tables(tables(result))
    for line in closing_lines(result):
        print(line)


@app.command()
def tune(
    search: Annotated[Path, typer.Argument(help="Search file; see pipelines/searches.")],
    overrides: Overrides = None,
    resume: Annotated[
        Resume,
        typer.Option(help="auto: go on if the search was begun; must: never begin one; never."),
    ] = Resume.AUTO,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print trials, images and disk, then stop.")
    ] = False,
    json_: Json = False,
) -> None:
    """Search settings: trials are training jobs, and weak ones are ended early.

    [dim]Example: fleetstep tune pipelines/searches/digits-speed.yaml searcher.trials=6[/dim]
    """
    from fleetstep.config import SearchSpec, load

    spec = load(SearchSpec, search, overrides or [])
    if dry_run:
        from fleetstep.orchestration.search_job import preview

        seen = preview(spec)
        _print_json(seen.as_dict()) if json_ else print(seen.text())
        return
    from fleetstep.orchestration.search_job import run_search

    if json_:
        _print_json(run_search(spec, resume=resume.value).as_dict())
        return
    with _NewestTable() as newest:
        result = run_search(spec, resume=resume.value, say=print, show=newest.show)
    _print_tables(result.tables())
    print(result.text())


@app.command()
def compare(
    runs: Annotated[
        list[str] | None,
        typer.Argument(help="Runs, trials or searches, by name or id; none: all training runs."),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            help="Run, or setting with several seeds, that the others are compared with; the "
            "first by default."
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", help="Folder for the page and the pictures.")
    ] = Path("comparison"),
    storage: Annotated[
        Path, typer.Option(help="Folder of the runs, for the default tracker.")
    ] = Path("runs"),
    tracking_uri: Annotated[
        str | None, typer.Option(help="MLflow tracking URI; may hold ${env:NAME}.")
    ] = None,
    experiment: Annotated[str, typer.Option(help="MLflow experiment.")] = "fleetstep",
    json_: Json = False,
) -> None:
    """Compare runs: a table here, PNGs and one self-contained page in --out.

    [dim]Example: fleetstep compare digits-edm digits-edm-fdm-speed --out comparison[/dim]
    """
    from fleetstep.orchestration.report import compare_runs

    result = compare_runs(
        runs or [],
        baseline=baseline,
        out=out,
        storage=storage,
        uri=tracking_uri,
        experiment=experiment,
    )
    if json_:
        _print_json(result.as_dict())
        return
    _print_tables(result.tables)
    print(f"page: {result.page}")
    print(f"data: {', '.join(map(str, result.exports))}")


@app.command()
def reference(
    data: Annotated[Path, typer.Argument(help="Folder of a packed dataset.")],
    out: Annotated[Path, typer.Option("--out", help="The .npz to write.")] = Path("reference.npz"),
    split: Annotated[str, typer.Option(help="Split whose images are measured.")] = "train",
    extractor: Annotated[
        str, typer.Option(help="fs-rn20, inception, dinov2, clip, or settings.")
    ] = "fs-rn20",
    form: Annotated[
        Literal["edm", "clean-fid-kid"],
        typer.Option(
            help="edm: mean and covariance, which EDM, ADM and clean-fid's FID read; "
            "clean-fid-kid: features of up to 10,000 images."
        ),
    ] = "edm",
    storage: Annotated[Path, typer.Option(help="Folder of results, shared by all actors.")] = Path(
        "runs"
    ),
    actors: Annotated[int, typer.Option(min=1, help="Most actors.")] = 2,
    cpus_per_actor: Annotated[float, typer.Option(min=0, help="Ray's CPUs of each.")] = 0.5,
    gpus_per_actor: Annotated[float, typer.Option(min=0, help="Ray's GPUs of each.")] = 0.0,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster; none starts a local one.", show_default=False)
    ] = None,
    json_: Json = False,
) -> None:
    """Write the statistics of a dataset's images, for sweeps elsewhere or other tools.

    [dim]Example: fleetstep reference data/digits --out digits.npz[/dim]
    """
    from fleetstep.config import PoolSpec
    from fleetstep.config.extractor_text import parse_extractor

    spec = parse_extractor(extractor)
    from fleetstep.orchestration.reference_job import write_reference

    written = write_reference(
        data,
        split=split,
        extractor=spec,
        form=form,
        out=out,
        storage=storage,
        pool=PoolSpec(max=actors, cpus_per_actor=cpus_per_actor, gpus_per_actor=gpus_per_actor),
        address=address,
        say=None if json_ else print,
    )
    _print_json(written) if json_ else print(
        f"{written['images']:,} images of {written['reference']}, {written['features']} features: "
        f"{written['path']} (sha256 {written['sha256'][:12]})"
    )


@app.command()
def doctor(json_: Json = False) -> None:
    """Say what is installed, what is missing, and what Ray sees on this machine.

    [dim]Example: fleetstep doctor --json[/dim]
    """
    from fleetstep.orchestration.doctor import examine

    findings = examine()
    if json_:
        _print_json([finding.as_dict() for finding in findings])
    else:
        for finding in findings:
            print(finding.line())
    if any(finding.status == "bad" for finding in findings):
        raise typer.Exit(1)


@app.command()
def status(
    storage: Annotated[Path, typer.Option("--storage", help="Folder of runs and sweeps.")] = Path(
        "runs"
    ),
    json_: Json = False,
) -> None:
    """Say what sweeps and evaluations are doing: actors, units, speed, time left.

    [dim]Example: fleetstep status --storage runs[/dim]
    """
    from fleetstep.orchestration.status import find_status, table_of

    seen = find_status(storage)
    if json_:
        _print_json([one.as_dict() for one in seen])
    elif seen:
        _print_tables([table_of(seen)])
    else:
        print(f"no sweep or evaluation has left a status file under {storage}")


# --- amed ----------------------------------------------------------------------------------------


@amed_app.command("train")
def amed_train_verb(
    preset: Annotated[
        Path, typer.Argument(help="Predictor file; see pipelines/presets/digits-amed.yaml.")
    ],
    overrides: Overrides = None,
    resume: Annotated[
        Resume, typer.Option(help="auto: go on if there is a checkpoint; must; never.")
    ] = Resume.AUTO,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would run, then stop.")
    ] = False,
    json_: Json = False,
) -> None:
    """Train a predictor for one network, solver and number of network calls.

    [dim]Example: fleetstep amed train pipelines/presets/digits-amed.yaml training.points=3
    name=digits-amed-3[/dim]
    """
    from fleetstep.config import AmedExperiment, load

    experiment = load(AmedExperiment, preset, overrides or [], data_required=not dry_run)
    from fleetstep.orchestration.amed_preview import preview_amed

    preview = preview_amed(experiment)
    if dry_run:
        _print_json(preview.as_dict()) if json_ else print(preview.text())
        return
    if not json_:
        print(preview.summary())
    from fleetstep.orchestration.amed_job import train_amed

    result = train_amed(experiment, resume=resume.value, say=None if json_ else print)
    if json_:
        _print_json(result.as_dict())
        return
    _print_tables(result.tables())
    print(result.text())


@app.command()
def certify(
    out: Annotated[
        Path, typer.Option("--out", help="Folder for the table, the record and the plots.")
    ] = Path("certificates"),
    quick: Annotated[
        bool, typer.Option("--quick", help="The reduced form: under half a minute.")
    ] = False,
    solver: Annotated[
        list[str] | None,
        typer.Option(help="Kind to certify, may be repeated; all by default.", show_default=False),
    ] = None,
    json_: Json = False,
) -> None:
    """Measure every solver's order and the accelerated samplers' rates on closed-form data.

    [dim]Example: fleetstep certify --quick --solver unipc --solver deis[/dim]
    """
    from fleetstep.orchestration.certify import certify as measure
    from fleetstep.orchestration.certify import tables

    result = measure(
        out=out, quick=quick, solvers=solver or (), say=None if json_ else _say_to_stderr
    )
    if json_:
        _print_json(result.as_dict())
    else:
        _print_tables(tables(result))
        print(f"{result.summary()}: {out}")
    if not result.passed:
        raise typer.Exit(1)


@app.command()
def trajectory(
    source: Annotated[Path, typer.Argument(help="Run folder, snapshot folder, or exact:DATASET.")],
    out: Annotated[
        Path, typer.Option("--out", help="Folder for the record and the figures.")
    ] = Path("trajectory"),
    samples: Annotated[int, typer.Option(min=1, help="Trajectories.")] = 1024,
    batch: Annotated[int, typer.Option(min=1, help="Trajectories at once.")] = 64,
    points: Annotated[int, typer.Option(help="Points of each, a multiple of 5 plus 1.")] = 41,
    ema: Annotated[str, typer.Option(help="EMA track.")] = "ema",
    json_: Json = False,
) -> None:
    """Measure how flat a snapshot's sampling trajectories are, and search where a step's second
    slope is best taken (AMED, Figs. 4 and 5).

    [dim]Example: fleetstep trajectory runs/digits-edm --samples 256[/dim]
    """
    from fleetstep.orchestration.trajectory_report import report_trajectories

    report = report_trajectories(
        source,
        out=out,
        samples=samples,
        batch=batch,
        points=points,
        ema=ema,
        say=None if json_ else _say_to_stderr,
    )
    _print_json(report.record) if json_ else print(f"{report.text()}\nfigures: {out}")


# --- output --------------------------------------------------------------------------------------


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, sort_keys=True))


def _say_to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


def _print_tables(tables: Iterable[Any]) -> None:
    from rich.console import Console

    console = Console()
    for table in tables:
        console.print(table)


def _print_table(table: Any) -> None:
    _print_tables([table])


class _NewestTable:
    """The newest table alone: on a terminal in one place below what is printed, elsewhere printed
    once a minute.
    """

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console()
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._next = time.monotonic() + _MINUTE_S

    def __enter__(self) -> _NewestTable:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, table: Any) -> None:
        if self._console.is_terminal:
            self._live.update(table, refresh=True)
        elif time.monotonic() >= self._next:
            self._next = time.monotonic() + _MINUTE_S
            self._console.print(table)


def _say_packed(manifest: Any, out: Path, as_json: bool) -> None:
    counts = {
        name: sum(shard.samples for shard in shards) for name, shards in manifest.splits.items()
    }
    if as_json:
        _print_json({"path": str(out), "fingerprint": manifest.fingerprint, "samples": counts})
        return
    listed = ", ".join(f"{name} {count}" for name, count in counts.items())
    print(f"packed {manifest.name} into {out}: {listed} (fingerprint {manifest.fingerprint[:12]})")


def _say_imported(written: Any, as_json: bool) -> None:
    _print_json(written.as_dict()) if as_json else print(written.text())


class _Bar:
    """A progress bar as the `progress(done, total)` callback that packing takes."""

    def __init__(self, title: str) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self._progress = Progress(
            TextColumn(title),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task = self._progress.add_task(title, total=None)

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, done: int, total: int) -> None:
        self._progress.update(self._task, completed=done, total=total)


def _bar(title: str) -> _Bar:
    return _Bar(title)
