"""Files based on others, and files whose dataset is not there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fleetstep.config import Experiment, SweepSpec, dump, load
from fleetstep.config.files import merged
from fleetstep.errors import ConfigError


def written(folder: Path, **files: str) -> Path:
    """Files of a folder by their stem; the last one."""
    for stem, text in files.items():
        (folder / f"{stem}.yaml").write_text(text)
    return folder / f"{stem}.yaml"


RECIPE = """
name: recipe
published: [{paper: FDM, where: Table 2, value: 1.88}]
data: {path: data/none, expects: {resolution: 8, channels: 1, classes: 10}}
process: {kind: edm, sigma_data: 0.4, p_std: 1.0}
strategies: [{kind: fdm}, {kind: speed}]
network: {kind: ddpmpp, channels: 32, multipliers: [1, 2], attention_resolutions: [4]}
training: {images: 1000, global_batch: 10, optimizer: {kind: adam, lr: 0.1}}
"""


def test_a_file_is_laid_over_those_it_is_based_on(tmp_path):
    (tmp_path / "deep").mkdir()
    written(tmp_path, recipe=RECIPE)
    written(
        tmp_path / "deep",
        middle="base: ../recipe.yaml\ntraining: {optimizer: {eps: 0.5}}\nname: middle",
        top="base: middle.yaml\nname: top\nnetwork: {channels: 64}\nstrategies: [{kind: warmup}]",
    )
    spec = load(Experiment, tmp_path / "deep/top.yaml", ["training.seed=3"], data_required=False)
    # Sections merge key by key, lists and values are replaced, and overrides come last.
    assert spec.name == "top"
    assert (spec.network.channels, spec.network.multipliers) == (64, (1, 2))
    assert (spec.training.optimizer.lr, spec.training.optimizer.eps) == (0.1, 0.5)
    assert [strategy.kind for strategy in spec.strategies] == ["warmup"]
    assert (spec.training.seed, spec.process.sigma_data) == (3, 0.4)
    assert spec.published == ()  # the number was that of recipe.yaml
    assert "base" not in yaml.safe_load(dump(spec))


def test_a_section_of_another_kind_replaces_the_one_beneath(tmp_path):
    top = written(tmp_path, recipe=RECIPE, top="base: recipe.yaml\nprocess: {kind: vp}")
    assert load(Experiment, top, data_required=False).process.model_dump() == {
        "kind": "vp", "beta_min": 0.1, "beta_d": 19.9, "beta_scale": 1.0, "t_min": 1e-5,
        "prediction": "eps",
    }  # fmt: skip
    same = written(tmp_path, same="base: recipe.yaml\nprocess: {kind: edm, p_std: 2}")
    process = load(Experiment, same, data_required=False).process
    assert (process.sigma_data, process.p_std) == (0.4, 2)


def test_another_kind_of_optimizer_keeps_the_settings_beneath(tmp_path):
    recipe = RECIPE.replace("lr: 0.1", "lr: 0.1, betas: [0.8, 0.9], eps: 0.5")
    adamw = "base: recipe.yaml\ntraining: {optimizer: {kind: adamw}}"
    top = written(tmp_path, recipe=recipe, top=adamw)
    optimizer = load(Experiment, top, data_required=False).training.optimizer
    assert (optimizer.kind, optimizer.lr) == ("adamw", 0.1)
    assert (optimizer.betas, optimizer.eps) == ((0.8, 0.9), 0.5)


def sections(
    model: type[BaseModel], above: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], list[type[BaseModel]]]]:
    """(path, the models that a `kind` chooses from) of every section that has several kinds."""
    for name, field in model.model_fields.items():
        path, found = (*above, name), list(models_in(field.annotation))
        kinds = [k for part in found if (f := part.model_fields.get("kind")) for k in options(f)]
        if len(kinds) > 1:
            yield path, found
        for part in found:
            yield from sections(part, path)


def options(kind: FieldInfo) -> tuple[str, ...]:
    return get_args(kind.annotation)


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from models_in(part)


@pytest.mark.parametrize("model", [Experiment, SweepSpec])
def test_settings_are_dropped_only_where_a_kind_is_another_model(model):
    found = dict(sections(model))
    assert ("training", "optimizer") in found or model is SweepSpec
    for path, models in found.items():
        beneath: dict[str, Any] = {path[-1]: {"kind": "one", "setting": 1}}
        kept = "setting" in merged(beneath, {path[-1]: {"kind": "another"}})[path[-1]]
        assert kept == (len(models) == 1), path


@pytest.mark.parametrize(
    "text",
    [
        'base: "a\\0b.yaml"',
        'base: "a\\ud800b.yaml"',
        "training: &loop {optimizer: *loop}",
        "strategies: &loop [*loop]",
        "name: 2024-99-99",
    ],
)
def test_a_file_that_makes_no_tree_is_one_message(tmp_path, text):
    with pytest.raises(ConfigError, match=r"recursive|no path|not YAML"):
        load(Experiment, written(tmp_path, wrong=text))


@pytest.mark.parametrize("override", ["training=&loop {a: *loop}", "name=2024-99-99"])
def test_an_override_that_makes_no_tree_is_one_message(tmp_path, override):
    with pytest.raises(ConfigError, match="the value is not YAML"):
        load(Experiment, written(tmp_path, recipe=RECIPE), [override])


def test_an_alias_beside_its_anchor_is_no_circle(tmp_path):
    twice = RECIPE.replace("data: {", "data: {split: &name train, heldout: heldout, ")
    recipe = twice.replace("name: recipe\n", "").replace("strategies", "name: *name\nstrategies")
    assert load(Experiment, written(tmp_path, recipe=recipe), data_required=False).name == "train"


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"a": "base: a.yaml"}, r"a\.yaml -> .*a\.yaml goes round in a circle"),
        (
            {"b": "base: a.yaml", "a": "base: b.yaml"},
            r"a\.yaml -> .*b\.yaml -> .*a\.yaml goes round in a circle",
        ),
        (
            {"b": "base: gone.yaml", "a": "base: b.yaml"},
            r"gone\.yaml does not exist \(base: .*a\.yaml -> .*b\.yaml -> .*gone\.yaml\)",
        ),
        ({"a": "base: 3"}, r"base: must be the path of a file, got 3"),
        ({"b": "[1]", "a": "base: b.yaml"}, r"b\.yaml must hold a mapping .*a\.yaml -> "),
        ({"a": "base: ."}, r"cannot be read \(base: .*a\.yaml -> "),
    ],
)
def test_a_base_that_cannot_be_read_names_the_chain(tmp_path, files, says):
    with pytest.raises(ConfigError, match=says):
        load(Experiment, written(tmp_path, **files))


def test_mistakes_in_a_base_name_the_key(tmp_path):
    secret = "training: {images: 10, global_batch: 5, sed: 1}\ndata: {path: '${env:HOME}'}"
    top = written(tmp_path, recipe=secret, top="base: recipe.yaml\nname: top")
    with pytest.raises(ConfigError) as caught:
        load(Experiment, top)
    assert "training.sed: unknown key; did you mean 'seed'?" in str(caught.value)
    assert "data.path: ${env:NAME} is for secrets" in str(caught.value)


def test_a_dataset_that_is_not_there_is_checked_by_what_is_expected_of_it(tmp_path):
    file = written(tmp_path, recipe=RECIPE)
    assert load(Experiment, file, data_required=False).name == "recipe"
    pack = r"data/none does not exist; pack images of 1 x 8 x 8 in 10 classes with `fleetstep data"
    with pytest.raises(ConfigError, match=pack):
        load(Experiment, file)
    with pytest.raises(ConfigError, match="8 is not divisible by 16"):
        load(Experiment, file, ["network.multipliers=[1, 1, 1, 1, 1]"], data_required=False)
    with pytest.raises(ConfigError, match="a VAE, which this version cannot pack yet"):
        load(Experiment, file, ["data.expects.latents=true"])
    # Without expectations there is nothing to check against, dry run or not.
    with pytest.raises(ConfigError, match="not a packed dataset"):
        load(Experiment, file, ["data.expects=null"], data_required=False)


def test_guidance_needs_classes_and_an_even_number_of_calls(tmp_path):
    file = written(tmp_path, recipe=RECIPE)
    guided = ["grid={solver: {kind: heun}, nfe: 70, guidance: {scale: 1.5}}"]
    assert load(Experiment, file, guided, data_required=False).grid.guidance is not None
    with pytest.raises(ConfigError, match=r"grid\.nfe: .* each 2 times for guidance.*nfe=34"):
        load(Experiment, file, [*guided, "grid.nfe=35"], data_required=False)
    with pytest.raises(ConfigError, match=r"grid\.guidance: scale 1\.5 needs class labels"):
        load(Experiment, file, [*guided, "data.expects.classes=0"], data_required=False)


def test_label_dropout_needs_classes(tmp_path):
    file = written(tmp_path, recipe=RECIPE)
    dropped = ["training.label_dropout=0.1"]
    assert load(Experiment, file, dropped, data_required=False).training.label_dropout == 0.1
    with pytest.raises(ConfigError, match=r"training\.label_dropout: 0\.1 drops class labels"):
        load(Experiment, file, [*dropped, "data.expects.classes=0"], data_required=False)


UNET = "{sample_size: 8, in_channels: 1, out_channels: 1, block_out_channels: [8], %s}"
DIFFUSERS = RECIPE.replace(
    "network: {kind: ddpmpp, channels: 32, multipliers: [1, 2], attention_resolutions: [4]}",
    f"network: {{kind: diffusers_unet, config: {UNET % 'num_class_embeds: 10'}}}",
).replace("process: {kind: edm, sigma_data: 0.4, p_std: 1.0}", "process: {kind: ddpm}")
DIFFUSERS = DIFFUSERS.replace("strategies: [{kind: fdm}, {kind: speed}]\n", "")


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["data.expects.channels=3"], r"in_channels: .* has 1, .* need 3; use in_channels: 3"),
        (["data.expects.channels=3"], r"out_channels: .* has 1, .* need 3"),
        (["process.learned_variance=true"], r"out_channels: .* has 1, .* need 2"),
        (["data.expects.classes=0"], r"num_class_embeds: .* has 10, .*use num_class_embeds: null"),
        (["data.expects.resolution=16"], r"8 x 8 pixels, not 16 x 16"),
        (["training.label_dropout=0.1"], r"label_dropout: 0\.1, but .* no entry for no class"),
        (["grid.guidance={scale: 1.5}"], r"grid\.guidance: scale 1\.5, but .* guidance: null"),
        (["training.activation_checkpointing=true"], r"no blocks that can be computed again"),
        (["data.augment=0.1"], r"network kind diffusers_unet cannot be told"),
    ],
)
def test_a_diffusers_network_is_checked_against_the_run(tmp_path, overrides, says):
    file = written(tmp_path, recipe=DIFFUSERS)
    assert load(Experiment, file, data_required=False).network.kind == "diffusers_unet"
    with pytest.raises(ConfigError, match=says):
        load(Experiment, file, overrides, data_required=False)


def test_guidance_of_scale_one_asks_a_diffusers_network_for_nothing(tmp_path):
    file = written(tmp_path, recipe=DIFFUSERS)
    load(Experiment, file, ["grid.guidance={scale: 1}"], data_required=False)


def test_a_diffusers_network_is_checked_against_the_manifest(tmp_path, digits_path):
    file = written(tmp_path, recipe=DIFFUSERS)
    here = [f"data.path={digits_path}"]
    assert load(Experiment, file, here).data.path == str(digits_path)
    with pytest.raises(ConfigError, match=r"num_class_embeds: .* has 3, .* need 10"):
        load(Experiment, file, [*here, "network.config.num_class_embeds=3"])
