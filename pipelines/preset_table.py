"""The table of presets: `python pipelines/preset_table.py` writes pipelines/presets/README.md."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import TypeAlias

from fleetstep.config import AmedExperiment, Experiment, PublishedSpec, SweepSpec, load
from fleetstep.config.files import read

PRESETS = Path(__file__).parent / "presets"
README = PRESETS / "README.md"

Preset: TypeAlias = Experiment | SweepSpec | AmedExperiment

INTRO = """\
# Presets

Each file is one experiment, one sweep (`fleetstep sweep`), or one predictor
(`fleetstep amed train`), and holds what it changes in the file it names as `base`.
`fleetstep train FILE --dry-run` prints the whole configuration, what every strategy does in
numbers, and the published numbers that the file stands for, with what makes some of them doubtful;
so do `fleetstep amed train FILE --dry-run` and `fleetstep sweep FILE --dry-run`.

- The dataset need not be there for a dry run: the rest is then checked against `data.expects`.
  Training needs it packed, e.g. `fleetstep data pack images FOLDER --size 64 --out data/ffhq64`.
- **Latents cannot be packed yet.** The DiT and U-Net presets are for latents of 4 x 32 x 32 that a
  VAE makes of images of 256 pixels (`latents: true`); until those can be packed, they can be
  read, checked and changed, but not trained.
- Published FIDs are of 50,000 images (FDM) or 10,000 (SpeeD). SpeeD samples in 250 ancestral
  steps with the variance that its networks learn, which no solver here reads (`ddpm` has the two
  fixed ones): the grids of its presets are drawn with another.
- Windows of the warm-up are optimiser steps times batch: FDM's 200, 400 or 800 steps.
- Left out: CLD (FDM, Table 7) and MDT (SpeeD, Fig. 6a), which are other models; text to image,
  super-resolution (SpeeD, Tables 5 and 9).
- AMED's predictors are for one number of network calls each: `training.points=3` (then 4, 5, 6)
  makes 3 (then 5, 7, 9), and wants a `name` of its own. The network must be there to train, e.g.
  `fleetstep import edm edm-cifar10-32x32-uncond-vp.pkl --out runs/edm-cifar10-32x32-uncond-vp`;
  ADM's (ImageNet-64, LSUN Bedroom) cannot be imported yet, and those files can only be read and
  checked. Stable Diffusion (AMED, Table 3) is left out: text to image.
- "Reconstruction" marks methods of which some parameter could not be recovered.

The table is written by `python pipelines/preset_table.py`.
"""


def files() -> list[Path]:
    """Every preset, those of this folder first."""
    return sorted(PRESETS.rglob("*.yaml"), key=lambda path: (path.parent, path.stem))


def model(path: Path) -> type[Preset]:
    """What a file is to be read as: a sweep names runs, a predictor the one it is for."""
    tree = read(path)
    if "runs" in tree:
        return SweepSpec
    return AmedExperiment if "run" in tree else Experiment


def preset(path: Path) -> Preset:
    """What a file holds, whether or not its dataset or network is there."""
    kind = model(path)
    if kind is not Experiment:
        return load(kind, path, data_required=False)
    # Files without `expects` are checked against their dataset; the table needs none.
    return Experiment.model_validate(read(path))


def sentence(path: Path) -> str:
    """What a file says it is: the comment at its head."""
    lines = takewhile(lambda line: line.startswith("#"), path.read_text().splitlines())
    return " ".join(line.lstrip("# ") for line in lines)


def table() -> str:
    """The README: an introduction, then a table for each folder."""
    return INTRO + "".join(_sections())


def _sections() -> Iterator[str]:
    folder = None
    for path in files():
        if path.parent != folder:
            folder = path.parent
            yield f"\n## {_heading(folder)}\n\n| file | what it is | published |\n|---|---|---|\n"
        link = path.relative_to(PRESETS).as_posix()
        numbers = _numbers(preset(path).published)
        yield f"| [{path.stem}]({link}) | {sentence(path)} | {numbers} |\n"


def _heading(folder: Path) -> str:
    return "digits" if folder == PRESETS else folder.relative_to(PRESETS).as_posix()


def _numbers(published: tuple[PublishedSpec, ...]) -> str:
    """Each table once, with its numbers in order."""
    found: dict[str, list[str]] = {}
    for entry in published:
        name = "" if entry.metric == "FID" else f" ({entry.metric})"
        value = "not published" if entry.value is None else f"{entry.value:g}"
        found.setdefault(f"{entry.paper} {entry.where}{name}", []).append(value)
    return "; ".join(f"{where}: {', '.join(values)}" for where, values in found.items())


if __name__ == "__main__":
    README.write_text(table())
