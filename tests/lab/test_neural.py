"""Neural fits: maps against scikit-learn, known answers, splits that never leak, the command, its mistakes."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
import types
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.cross_decomposition import PLSRegression
from sklearn.linear_model import Ridge
from torch import nn

from runs import silent, small
from untied.errors import UntiedError
from untied.lab.cli import main
from untied.lab.data import DataConfig, load
from untied.lab.experiments.train import train
from untied.lab.keeping.record import RunFolder
from untied.lab.models import build
from untied.lab.neural import command, convert, fits, rsa, summary
from untied.lab.neural.command import neural
from untied.lab.neural.features import Projection, features, grouped
from untied.lab.neural.fits import fit_responses
from untied.lab.neural.layers import chosen, trace
from untied.lab.neural.maps import PENALTIES, chosen_penalty, gram, pls, ridge
from untied.lab.neural.networks import networks
from untied.lab.neural.preprocess import Prepared, as_trained, prepare
from untied.lab.neural.recording import Recording, of_arrays, read, write
from untied.lab.neural.scores import corrected, median, pearson, sem, split_half, test_retest
from untied.lab.neural.splits import folds, splits
from untied.lab.settings.neural import NeuralConfig, Settings

test_retest.__test__ = False  # type: ignore[attr-defined]  # a reliability, not a test
RANDOM = np.random.default_rng(0)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def arrays(n: int = 60, k: int = 4, repeats: int = 3, size: int = 6, seed: int = 0) -> dict[str, np.ndarray]:
    """The fields of a small recording."""
    random = np.random.default_rng(seed)
    images = random.integers(256, size=(n, size, size, 3), dtype=np.uint8)
    signal = images.reshape(n, -1).astype(float) @ random.normal(size=(size * size * 3, k)) / 500
    return {
        "images": images, "responses": signal[:, :, None] + random.normal(size=(n, k, repeats)),
        "region": np.array(["V4"] * (k // 2) + ["IT"] * (k - k // 2)), "subject": np.array("A"),
        "name": np.array("small"),
    }  # fmt: skip


def a_recording(**changes: Any) -> Recording:
    return of_arrays({**arrays(), **changes}, Path())


# Maps


@pytest.mark.parametrize(
    ("n", "d", "q", "components"),
    [(120, 500, 12, 25), (120, 60, 30, 25), (120, 400, 1, 10), (80, 9, 4, 9), (90, 40, 70, 25)],
)
def test_pls_is_that_of_scikit_learn(n: int, d: int, q: int, components: int) -> None:
    X = np.abs(noise(n, d)) / np.sqrt(np.arange(1, d + 1))
    Y = X @ noise(d, q, seed=1) / 5 + noise(n, q, seed=2)
    split = (np.arange(0, n, 1)[n // 5 :], np.arange(n // 5))
    (found,) = pls(gram(X), Y, [split], components)
    reference = PLSRegression(components, scale=False, tol=1e-15, max_iter=50_000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the iteration has not come to its tolerance
        wanted = reference.fit(X[split[0]], Y[split[0]]).predict(X[split[1]]).reshape(found.shape)
    np.testing.assert_allclose(found, wanted, atol=2e-6)
    np.testing.assert_allclose(pearson(found, Y[split[1]]), pearson(wanted, Y[split[1]]), atol=1e-6)


def test_pls_of_many_splits_is_that_of_each() -> None:
    """Splits of different sizes, more than are taken at once, some of them out of components earlier than others."""
    X = np.concatenate([noise(90, 6), np.zeros((90, 30))], 1)
    X[60:, 6:] = noise(30, 30, seed=4)  # images that only some splits see
    Y = X @ noise(36, 5, seed=1) + 0.3 * noise(90, 5, seed=2)
    cuts = [(np.arange(60), np.arange(60, 75)), *folds(np.arange(90), 35, 0)]
    for found, cut in zip(pls(gram(X), Y, cuts, 12), cuts, strict=True):
        np.testing.assert_allclose(found, pls(gram(X), Y, [cut], 12)[0], atol=1e-8)


def test_single_precision_is_enough_for_inner_products() -> None:
    X, responses = features_and_responses(200, 3000, 20, 1, 1.0)
    X = np.maximum(X, 0) + 3  # as after a ReLU, and far from its mean
    K, Y = gram(X), responses[:, :, 0]
    cut = (np.arange(160), np.arange(160, 200))
    one, two = (pearson(pls(k, Y, [cut], 25)[0], Y[160:]) for k in (K, gram(X.astype(np.float32))))
    np.testing.assert_allclose(one, two, atol=1e-5)


def test_pls_stops_where_nothing_is_left_to_explain() -> None:
    X = noise(40, 3)
    Y = X @ noise(3, 2, seed=1)
    split = (np.arange(30), np.arange(30, 40))
    np.testing.assert_allclose(pls(gram(X), Y, [split], 25)[0], Y[30:], atol=1e-6)
    (flat,) = pls(gram(np.ones((40, 3))), Y, [split], 25)
    np.testing.assert_allclose(flat, np.tile(Y[:30].mean(0), (10, 1)))


def test_ridge_is_that_of_scikit_learn() -> None:
    X, Y = noise(60, 200), noise(60, 5, seed=1)
    split = (np.arange(48), np.arange(48, 60))
    centred = X[:48] - X[:48].mean(0)
    for penalty, found in zip((1e-3, 1.0), ridge(gram(X), Y, split, (1e-3, 1.0)), strict=True):
        alpha = penalty * (centred**2).sum() / 48
        np.testing.assert_allclose(found, Ridge(alpha).fit(X[:48], Y[:48]).predict(X[48:]), atol=1e-9)


def test_the_penalty_follows_the_noise() -> None:
    X = noise(90, 30)
    signal = X @ noise(30, 6, seed=1)
    inner = folds(np.arange(90), 3, 0)
    clean = chosen_penalty(gram(X), signal, inner)[0]
    loud = chosen_penalty(gram(X), signal + 30 * noise(90, 6, seed=2), inner)[0]
    assert PENALTIES[0] <= clean < loud


# Known answers


def features_and_responses(n: int, d: int, q: int, repeats: int, level: float) -> tuple[np.ndarray, np.ndarray]:
    X = noise(n, d)
    signal = X @ noise(d, q, seed=1)
    signal /= signal.std(0)
    return X, signal[:, :, None] + level * noise(n, q, repeats, seed=2)


def recorded(responses: np.ndarray, **more: np.ndarray) -> Recording:
    n = len(responses)
    images = np.arange(n * 4, dtype=np.uint32).view(np.uint8).reshape(n, 4, 4)
    return of_arrays({"images": images, "responses": responses, "name": np.array("made"), **more}, Path())


@pytest.mark.parametrize("name", ["pls", "ridge"])
def test_a_linear_map_is_found_up_to_the_noise_ceiling(name: str) -> None:
    X, responses = features_and_responses(500, 12, 30, repeats=6, level=1.5)
    r = recorded(responses)
    found = fit_responses(X, r, Settings((name,), components=12))
    rho = found["reliability"]
    expected = 1 / (1 + 1.5**2 / 6)
    assert rho.mean() == pytest.approx(expected, abs=0.02)
    score = found[f"{name}.test"].mean(0)
    assert median(score) == pytest.approx(np.sqrt(expected), abs=0.02)
    assert median(corrected(score, rho)) == pytest.approx(1, abs=0.02)


def test_shuffled_responses_are_not_predicted() -> None:
    X, responses = features_and_responses(300, 40, 60, repeats=1, level=0.1)
    found = fit_responses(X, recorded(np.random.default_rng(5).permutation(responses)), Settings(("pls", "ridge")))
    for name in ("pls", "ridge"):
        score = found[f"{name}.test"].mean(0)
        assert abs(score.mean()) < 4 * sem(score) + 0.02 < 0.1


def test_a_region_is_fitted_alone() -> None:
    X, responses = features_and_responses(120, 20, 8, 1, 0.5)
    both = fit_responses(X, recorded(responses, region=np.array(["V4"] * 5 + ["IT"] * 3)), Settings())
    one = fit_responses(X, recorded(responses[:, :5]), Settings())
    np.testing.assert_array_equal(both["pls.test"][:, :5], one["pls.test"])


# Splits and selection


def test_splits_cover_every_picture_equally_and_keep_repeats_together() -> None:
    groups = np.concatenate([np.arange(50), np.arange(20), np.arange(5)])
    found = splits(groups, 10, 0.2, seed=3)
    times = np.zeros(len(groups), int)
    for fit, tested in found:
        assert not set(groups[fit]) & set(groups[tested])
        assert sorted([*fit, *tested]) == list(range(len(groups)))
        times[tested] += 1
    assert (times == 2).all()
    again = splits(groups, 10, 0.2, seed=3)
    assert all(
        np.array_equal(a, b) for one, two in zip(found, again, strict=True) for a, b in zip(one, two, strict=True)
    )
    assert not np.array_equal(found[0][1], splits(groups, 1, 0.2, seed=4)[0][1])


def test_identical_pictures_are_one_even_under_different_names() -> None:
    images = arrays()["images"]
    images[7], images[9] = images[3], images[4]
    stimulus = np.array([str(i) for i in range(60)])
    stimulus[20] = stimulus[9]
    groups = a_recording(images=images, stimulus=stimulus).groups
    assert groups[7] == groups[3] and groups[20] == groups[9] == groups[4]
    assert len(np.unique(groups)) == 57


def test_selection_never_sees_test_images() -> None:
    """Whatever happens to the test images of a split, what layers and penalties are chosen by stays the same."""
    X, responses = features_and_responses(100, 15, 6, 1, 1.0)
    settings = Settings(("pls", "ridge"), components=5)
    tested = splits(np.arange(100), settings.splits, settings.test, settings.seed)[0][1]
    other, changed = X.copy(), responses.copy()
    other[tested] = 100 * noise(len(tested), 15, seed=9)
    changed[tested] = 100 * noise(len(tested), 6, 1, seed=8)
    one = fit_responses(X, recorded(responses), settings)
    two = fit_responses(other, recorded(changed), settings)
    for name in ("pls", "ridge"):
        np.testing.assert_allclose(one[f"{name}.inner"][0], two[f"{name}.inner"][0], atol=1e-7)
        assert not np.allclose(one[f"{name}.test"][0], two[f"{name}.test"][0])
        assert not np.allclose(one[f"{name}.inner"][1], two[f"{name}.inner"][1])
    assert one["ridge.penalty"][0] == two["ridge.penalty"][0]


def a_fit(layer: str, inner: np.ndarray, test: np.ndarray, rule: str = "bp", seed: int = 0, **more: Any) -> fits.Fit:
    q = test.shape[1]
    tensors = {"pls.inner": inner, "pls.test": test, "reliability": more.pop("rho", np.full(q, np.nan))}
    return fits.Fit(
        rule, seed, "net", 0.5, more.pop("recording", "r"), layer, {"a": 0, "b": 1}[layer], 10, 10,
        tuple(map(str, range(q))), ("V4",) * q, ("A",) * q, (), "", "", tensors,
    )  # fmt: skip


def test_the_best_layer_is_that_of_the_inner_folds_not_of_the_test() -> None:
    low, high = np.full((2, 3), 0.2), np.full((2, 3), 0.7)
    inner = np.array([[0.9] * 3, [0.1] * 3])
    fitted = [a_fit("a", inner, low), a_fit("b", 1 - inner, high)]
    best, a, b = summary.rows(fitted)
    assert (best.layer, best.r, best.share) == ("best", pytest.approx(0.45), 0.5)
    assert (a.r, b.r) == (pytest.approx(0.2), pytest.approx(0.7))


def test_rows_pool_recordings_average_seeds_and_compare_neuron_by_neuron() -> None:
    def pair(rule: str, seed: int, shift: float) -> list[fits.Fit]:
        out = []
        for name, q in (("r", 3), ("s", 5)):
            test = np.tile(np.linspace(0.1, 0.5, q), (4, 1)) + shift
            out.append(a_fit("a", test, test, rule, seed, recording=name, rho=np.full(q, 0.25)))
        return out

    rows = summary.rows([*pair("sa", 0, 0.1), *pair("sa", 1, 0.2), *pair("bp", 0, 0.0), *pair("random", 0, -0.1)])
    pooled = [row for row in rows if row.recording == "all" and row.layer == "best"]
    assert [row.rule for row in pooled] == ["bp", "sa", "random"]  # the reference first, the floor last
    base, sa, floor = pooled
    assert (base.r, base.neurons, base.corrected) == (pytest.approx(0.3), 8, pytest.approx(0.6))
    assert (sa.r, sa.seeds, sa.spread) == (pytest.approx(0.45), 2, pytest.approx(np.std([0.4, 0.5], ddof=1)))
    assert (sa.difference, sa.difference_sem) == (pytest.approx(0.15), pytest.approx(0, abs=1e-9))
    assert floor.difference == pytest.approx(-0.1) and np.isnan(base.difference)
    assert sa.apart == (pytest.approx(0.1),) and np.isnan(sa.apart_sem)  # bp has no seed 1
    assert base.sem == pytest.approx(np.std(base.vector, ddof=1) / np.sqrt(8))


# Noise


def test_split_half_is_the_reliability_of_the_mean_with_missing_repeats() -> None:
    signal = noise(2000, 3)
    responses = signal[:, :, None] + 2 * noise(2000, 3, 8, seed=1)
    np.testing.assert_allclose(split_half(responses), 1 / (1 + 4 / 8), atol=0.03)
    responses[RANDOM.random(responses.shape) < 0.3] = np.nan
    assert (split_half(responses) < 0.67).all() and (split_half(responses) > 0.5).all()


def test_pictures_measured_twice_give_a_reliability() -> None:
    signal = noise(400, 2)
    rows = np.concatenate([signal, signal[:300]]) + noise(700, 2, seed=1)
    groups = np.concatenate([np.arange(400), np.arange(300)])
    np.testing.assert_allclose(test_retest(rows, groups), 0.5, atol=0.12)
    assert np.isnan(test_retest(rows[:400], groups[:400])).all()


def test_correlations_of_what_does_not_move() -> None:
    y = noise(10, 2)
    y[:, 1] = 3
    np.testing.assert_array_equal(pearson(np.ones((10, 2)) * 0.1, y), [0.0, np.nan])
    assert np.isnan(corrected(np.array([0.5]), np.array([0.05]))[0])
    assert corrected(np.array([0.4]), np.array([0.64]))[0] == pytest.approx(0.5)


# Dissimilarities


def test_dissimilarities_are_one_minus_correlation() -> None:
    X = noise(20, 50)
    np.testing.assert_allclose(rsa.dissimilarity(X), 1 - np.corrcoef(X), atol=1e-12)
    assert rsa.similarity(rsa.dissimilarity(X), rsa.dissimilarity(X) ** 3) == pytest.approx(1)


def test_the_bootstrap_spreads_about_the_value_and_a_ceiling_bounds_it() -> None:
    true = rsa.dissimilarity(noise(40, 30))
    subjects = np.stack([true + 0.2 * np.abs(noise(40, 40, seed=s)) for s in range(4)])
    subjects = (subjects + subjects.swapaxes(1, 2)) / 2
    target = subjects.mean(0)
    value, samples = rsa.similarity(true, target), rsa.bootstrap(true, target, 300, 0)
    assert abs(samples.mean() - value) < 3 * samples.std() and 0 < samples.std() < 0.1
    np.testing.assert_array_equal(samples, rsa.bootstrap(true, target, 300, 0))
    low, high = rsa.ceiling(subjects)
    assert low < high <= 1 and np.isnan(rsa.ceiling(subjects[:1])[0])


# Layers and features


def test_layers_of_a_resnet_by_default_all_and_by_name() -> None:
    model = build("resnet18-w4", input_shape=(3, 16, 16), classes=3).eval()
    traced = trace(model, torch.zeros(1, 3, 16, 16))
    blocks = [f"layer{s}.{b}" for s in range(1, 5) for b in range(2)]
    assert [layer.name for layer in chosen(model, traced, ["default"])] == ["pool", *blocks, "fc:input"]
    every = [layer.name for layer in chosen(model, traced, ["all"])]
    assert {"conv1", "layer1.0.conv1", "layer4.1", "fc", "fc:input"} < set(every)
    assert len(every) == 20 + 1 + 8 + 1 + 3 and "layer4" not in every  # the stage is its last block
    assert [layer.name for layer in chosen(model, traced, ["fc:input", "bn1"])] == ["bn1", "fc:input"]
    with pytest.raises(UntiedError, match=r"no layer 'layer5.0'; nearest: layer\d"):
        chosen(model, traced, ["layer5.0"])


@pytest.mark.parametrize(("name", "wanted"), [("mlp-8-6", ["relu1", "relu2"]), ("cnn-4-8", ["relu1", "pool"])])
def test_layers_of_plain_networks(name: str, wanted: list[str]) -> None:
    model = build(name, input_shape=(1, 8, 8), classes=3).eval()
    assert [layer.name for layer in chosen(model, trace(model, torch.zeros(1, 1, 8, 8)), ["default"])] == wanted


def test_features_are_those_of_a_forward_pass_whatever_the_groups() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4 * 36, 5)
    ).eval()
    pictures = Prepared(torch.randint(256, (70, 3, 8, 8), dtype=torch.uint8), lambda x: x.float() / 255 - 0.5)
    layers = chosen(model, trace(model, torch.zeros(1, 3, 8, 8)), ["0", "1", "2", "4:input", "4"])
    one = {layer.name: X for layer, X in features(model, pictures, layers, width=4096, memory=10**9)}
    many = {layer.name: X for layer, X in features(model, pictures, layers, width=4096, memory=1)}
    x = pictures.normalise(pictures.pixels)
    with torch.no_grad():
        wanted = {
            "0": model[0](x),
            "1": model[1](model[0](x)),
            "2": model[:3](x),
            "4:input": model[:4](x),
            "4": model(x),
        }
    assert list(one) == ["0", "1", "2", "4:input", "4"] and len(grouped(layers, 70, 4096, 1)) == 5
    for name, value in wanted.items():
        torch.testing.assert_close(one[name], value.flatten(1))
        assert torch.equal(one[name], many[name])  # 1 is not overwritten by the ReLU in place


def test_a_projection_is_orthogonal_and_changes_r_by_less_than_a_hundredth() -> None:
    basis = Projection.draw(101, 40)(torch.eye(101, dtype=torch.float64))
    torch.testing.assert_close(basis.T @ basis, torch.eye(40, dtype=torch.float64) * 101 / 40)
    with pytest.raises(ValueError, match="width"):
        Projection.draw(10, 10)
    torch.manual_seed(0)
    images = torch.nn.functional.interpolate(torch.rand(240, 3, 8, 8), size=32, mode="bicubic").clamp(0, 1)
    pictures = Prepared((255 * images).byte(), lambda x: x.float() / 128 - 1)
    model = build("resnet18-w32", input_shape=(3, 32, 32), classes=10).eval()
    layers = chosen(model, trace(model, torch.zeros(1, 3, 32, 32)), ["pool"])
    assert layers[0].width == 32768
    ((_, X),) = features(model, pictures, layers, width=32768, memory=10**9)
    ((_, P),) = features(model, pictures, layers, width=16384, memory=10**9)
    assert P.shape == (240, 16384)
    K = gram(X.numpy())
    values, vectors = np.linalg.eigh(K)
    Y = vectors[:, -40:] * np.sqrt(values[-40:]) @ noise(40, 30)
    Y = Y / Y.std(0) + 0.7 * noise(240, 30, seed=3)
    r = recorded(Y)
    scores = [fit_responses(features.numpy(), r, Settings())["pls.test"].mean(0) for features in (X, P)]
    assert 0.3 < median(scores[0]) < 0.9
    assert abs(median(scores[0]) - median(scores[1])) < 0.01 and np.abs(scores[0] - scores[1]).max() < 0.02


# Pictures as networks see them


def test_pictures_are_seen_as_in_training() -> None:
    config = DataConfig("digits")
    data = load(config, seed=0)
    seeing = as_trained(data, config)
    assert seeing.shape == (1, 8, 8) and "grey" in seeing.words and "0 to 16" in seeing.words
    image = (data.test.images[0, 0] * 255 / 16).round().byte().numpy()  # type: ignore[attr-defined]
    shown = prepare(a_recording(images=np.stack([image] * 60)), seeing)
    batch, _ = next(iter(data.test))
    torch.testing.assert_close(next(shown.batches())[0], batch[0], atol=0.02, rtol=0)


def test_pictures_of_another_shape_are_covered_not_squeezed(shared_data: Path) -> None:
    config = DataConfig("cifar10", root=shared_data / "cifar10" / "cifar10_subset_10k_2k_jpeg.npz")
    data = load(config, seed=0)
    seeing = as_trained(data, config)
    stripes = Image.fromarray(np.repeat(np.array([[0, 255, 255, 0]], np.uint8), 32, 1).repeat(64, 0))
    pixels = seeing.transform(stripes.convert("RGB"))
    assert pixels.shape == (3, 32, 32) and (pixels[:, :, 4:28] > 250).all()
    folder = DataConfig("folder", root=shared_data / "imagenette224_subset", image_size=64)
    seeing = as_trained(load(folder, seed=0), folder)
    assert seeing.shape == (3, 64, 64) and seeing.transform(stripes.convert("RGB")).shape == (3, 64, 64)
    assert float(seeing.normalise(torch.zeros(1, 3, 1, 1))[0, 0]) == pytest.approx(-0.485 / 0.229)


# Recordings


def test_a_recording_is_read_as_it_was_written_in_each_way_of_giving_images(tmp_path: Path) -> None:
    given = arrays()
    write(tmp_path / "plain.npz", given)
    names = []
    for i, image in enumerate(given["images"]):
        names.append(f"{i:02}.png")
        Image.fromarray(image).save(tmp_path / names[-1])
    packed = convert.packed([tmp_path / name for name in names])
    rest = {k: v for k, v in given.items() if k != "images"}
    write(tmp_path / "packed.npz", {**rest, **packed})
    write(tmp_path / "paths.npz", {**rest, "image_paths": np.array(names)})
    for name in ("plain", "packed", "paths"):
        r = read(tmp_path / f"{name}.npz")
        assert len(r) == 60 and r.responses.shape == (60, 4, 3) and r.region.tolist() == ["V4", "V4", "IT", "IT"]
        assert np.array_equal(np.asarray(r.open(5)), given["images"][5])
        assert str(r) == "small: 60 images; 2 neurons of V4, 2 neurons of IT, up to 3 repeats"
        assert r.reliability[1] == "split halves of the repeats, Spearman-Brown"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": np.zeros((50, 4, 4), np.uint8)}, "has 50 images and responses to 60"),
        ({"responses": np.where(np.arange(4) == 2, 1.0, noise(60, 4))}, "1 of 4 neurons answer every image.*neuron 2"),
        ({"responses": np.full((60, 4), np.nan)}, "240 of 240 responses are NaN in every repeat.*--drop"),
        ({"responses": np.full((60, 4), np.inf)}, "infinite"),
        ({"responses": noise(60)}, r"responses are \(60,\)"),
        ({"region": np.array(["V4"] * 3)}, "4 neurons and 3 values of region"),
        ({"stimulus": np.arange(59)}, "60 images and 59 values of stimulus"),
        ({"images": noise(60, 4, 4)}, "images are float64"),
        ({"rdm": np.zeros((59, 59)), "rdm_region": np.array(["IT"])}, "rdm is"),
        ({"rdm": noise(60, 60), "rdm_region": np.array(["IT"])}, "rdm is not symmetric"),
        ({"responces": noise(60, 4)}, "unknown field 'responces'"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_recording_is_said_in_a_line(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UntiedError, match=words) as error:
        a_recording(**changes)
    assert "\n" not in str(error.value)


def test_files_that_are_no_recordings(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    for path, words in (
        ("none.npz", "No such file"),
        ("text.npz", "cannot read"),
        ("other.npz", "not a recording: it has x"),
    ):
        with pytest.raises(UntiedError, match=words):
            read(tmp_path / path)
    write(tmp_path / "lost.npz", {**{k: v for k, v in arrays().items() if k != "images"},
                                  "image_paths": np.array([f"{i}.png" for i in range(60)])})  # fmt: skip
    with pytest.raises(UntiedError, match=r"cannot read .*0.png"):
        read(tmp_path / "lost.npz").open(0)
    with pytest.raises(UntiedError, match="too few for 25 components"):
        fits.check(a_recording(images=arrays(n=30)["images"], responses=noise(30, 4)), Settings())


def test_convert_takes_arrays_of_any_name_order_and_mark_for_missing(tmp_path: Path) -> None:
    given = arrays(n=20, k=5)
    raw = given["responses"].round(2).transpose(1, 2, 0)
    raw[1, 2, 3], raw[2, :, 7], raw[4] = -99, -99, 0
    where = np.array(["V4", "V4", "IT", "IT", "IT"])
    np.savez(tmp_path / "lab.npz", pics=given["images"], spikes=raw, where=where)
    np.save(tmp_path / "names.npy", np.array(list("abcde")))
    words = ["neural", "convert", str(tmp_path / "lab.npz"), str(tmp_path / "out.npz"), "--images", "pics",
             "--responses", "spikes", "--axes", "neuron", "repeat", "image", "--missing", "-99", "--region", "where",
             "--subject", "Otto", "--neuron", str(tmp_path / "names.npy"), "--about", "mine"]  # fmt: skip
    assert main(words) == 2  # neuron 2 was not measured on image 7
    assert main([*words, "--drop", "neurons"]) == 0
    r = read(tmp_path / "out.npz")
    assert r.neuron.tolist() == list("abd") and r.region.tolist() == ["V4", "V4", "IT"] and r.about == "mine"
    assert r.subject.tolist() == ["Otto"] * 3 and np.isnan(r.responses[3, 1, 2]) and np.isfinite(r.mean).all()
    np.testing.assert_allclose(r.responses[0, 0], raw[0, :, 0], rtol=1e-6)
    raw[4] = raw[0]
    np.savez(tmp_path / "lab.npz", pics=given["images"], spikes=raw, where=where)
    assert main([*words, "--drop", "images"]) == 0
    assert len(read(tmp_path / "out.npz")) == 19


def test_convert_says_what_it_cannot_find(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "lab.npz", pictures=arrays()["images"], responses=noise(60, 4))
    lab, out = str(tmp_path / "lab.npz"), str(tmp_path / "out.npz")
    for words, said in (
        ([lab, out, "--images", "picture"], "no array 'picture': did you mean 'pictures'? it has pictures, responses"),
        ([lab, out, "--images", "pictures", "--axes", "image", "image"], "name each axis once"),
        ([lab, str(tmp_path / "out.txt"), "--images", "pictures"], "written as .npz"),
        ([lab, out, "--images", "pictures", "--stimulus", "no.npy"], "cannot read the array no.npy (No such file"),
        (["brainscore:Majaj", out], "needs Brain-Score, which is not installed"),
    ):
        assert main(["neural", "convert", *words]) == 2
        assert said in (line := capsys.readouterr().err) and line.count("\n") == 1


class Coordinate:
    def __init__(self, values: list[str]) -> None:
        self.values = np.array(values)


def test_brain_score_assemblies_become_recordings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the shape that brainscore_vision gives; the package is not installed here."""
    for name in "abc":
        Image.fromarray(RANDOM.integers(256, size=(5, 5, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    stimuli = types.SimpleNamespace(get_stimulus=lambda name: tmp_path / f"{name}.png")
    values = noise(2, 7, 1)
    assembly = types.SimpleNamespace(
        dims=("neuroid", "presentation", "time_bin"), values=values, attrs={"stimulus_set": stimuli},
        coords={"stimulus_id": Coordinate(list("abcabca")), "region": Coordinate(["IT", "V4"]),
                "animal": Coordinate(["Tito", "Chabo"]), "neuroid_id": Coordinate(["n1", "n2"])},
    )  # fmt: skip
    package = types.ModuleType("brainscore_vision")
    package.load_dataset = {"Made2020": assembly}.__getitem__  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "brainscore_vision", package)
    assert main(["neural", "convert", "brainscore:Made2020", str(tmp_path / "r.npz")]) == 0
    r = read(tmp_path / "r.npz")
    assert r.name == "Made2020" and r.stimulus.tolist() == list("abc") and r.subject.tolist() == ["Tito", "Chabo"]
    np.testing.assert_allclose(r.responses[0, 1], values[1, [0, 3, 6], 0], rtol=1e-6)
    assert (
        np.isnan(r.responses[2, 0, 2]) and main(["neural", "convert", "brainscore:None", str(tmp_path / "r.npz")]) == 2
    )


# The command


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two tiny runs of one architecture, bp and fa."""
    folder = tmp_path_factory.mktemp("runs")
    for rule in ("bp", "fa"):
        assert train(small(folder / rule, rule=rule, epochs=1), silent()) == 0
    return folder / "bp", folder / "fa"


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recording") / "small.npz"
    matrices = np.stack([rsa.dissimilarity(noise(60, 30, seed=s)) for s in range(2)])
    write(path, {**arrays(), "rdm": matrices, "rdm_region": np.array(["IT", "IT"])})
    return path


SMALL = ("--components", "3", "--bootstrap", "20", "--splits", "2", "--maps", "pls", "ridge")


def test_the_command_writes_all_of_it_and_report_writes_it_again(
    two_runs: tuple[Path, Path], small_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "fits"
    words = [str(two_runs[0]), str(two_runs[1]), "--random", "--pixels", "--recording", str(small_file), *SMALL]
    assert main(["neural", *words, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "small: 60 images; 2 neurons of V4, 2 neurons of IT" in said and "pixels" in said
    for name in ("fits", "layers", "neurons"):
        assert (out / "figures" / f"{name}.svg").stat().st_size > 5000
    result = json.loads((out / "results.json").read_text())
    assert {(row["region"], row["map"]) for row in result["rows"]} == {
        ("V4", "pls"), ("V4", "ridge"), ("IT", "pls"), ("IT", "ridge"), ("IT", "rdm"),
    }  # fmt: skip
    assert [row["rule"] for row in result["rows"]][:4] == ["bp", "fa", "random", "pixels"]
    assert len(result["rows"][0]["vector"]) == 2 and result["rows"][0]["accuracy"] is not None
    page = (out / "index.html").read_text()
    assert "grey" in page and "Noise-corrected" in page and "Noise ceiling" in page and "rule has finished" not in page
    rows = list(csv.DictReader(io.StringIO((out / "neurons.csv").read_text())))
    assert len(rows) == 4 * 2 * 4 and {row["subject"] for row in rows} == {"A"}
    before = {
        path.name: path.read_bytes() for path in [out / "table.md", out / "table.csv", *(out / "figures").iterdir()]
    }
    for path in before:
        (out / path).unlink(missing_ok=True)
    assert main(["report", str(out)]) == 0
    assert all((out / name).read_bytes() == content for name, content in before.items() if not name.endswith(("g",)))
    (out / "fits" / f"{result['fits'][0]}.safetensors").write_text("torn")
    assert main(["report", str(out)]) == 2 and "gone or damaged" in capsys.readouterr().err


def test_an_interrupted_comparison_goes_on_and_gives_the_same(
    two_runs: tuple[Path, Path], small_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["neural", str(two_runs[0]), str(two_runs[1]), "--recording", str(small_file), *SMALL]
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    fit, calls = fits.fit_responses, []

    def counted(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return fit(*arguments)

    monkeypatch.setattr(fits, "fit_responses", counted)
    again = [*words, "--out", str(tmp_path / "parts")]
    assert main(again) == 130
    assert main(["report", str(tmp_path / "parts")]) == 2
    assert main(again) == 0 and len(calls) == 3  # one of the two fits was kept
    assert (tmp_path / "parts" / "table.csv").read_text() == (tmp_path / "whole" / "table.csv").read_text()
    assert main(again) == 0 and len(calls) == 3
    more = ["neural", f"other={two_runs[0]}", *again[1:]]
    assert main(more) == 0 and len(calls) == 4  # runs may be added
    assert main([*again, "--components", "4"]) == 2
    assert main([*again, "--components", "4", "--overwrite"]) == 0 and len(calls) == 6


def test_a_comparison_is_as_many_runs(small_file: Path, tmp_path: Path) -> None:
    from untied.lab.experiments.compare import compare
    from untied.lab.settings.compare import CompareConfig

    data = DataConfig("synthetic", synthetic_shape=(1, 4, 4), synthetic_classes=3, synthetic_count=60, batch_size=12,
                      validation=0.2)  # fmt: skip
    given = CompareConfig(rules=("bp", "ia"), model="mlp-8", data=data, epochs=1, seeds=2, workers=0, timing_steps=0,
                          frozen=False, out=tmp_path / "compare")  # fmt: skip
    compare(given, silent())
    assert main(["neural", str(tmp_path / "compare"), "--recording", str(small_file), "--components", "3", "--splits",
                 "2", "--bootstrap", "9", "--random", "--out", str(tmp_path / "out")]) == 0  # fmt: skip
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert [(row["rule"], row["seeds"]) for row in rows][:3] == [("bp", 2), ("ia", 2), ("random", 2)]


def test_a_folder_of_runs_is_its_runs_that_have_ended_under_their_labels(
    two_runs: tuple[Path, Path], small_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `untied transfer` leaves them; a study's folder is the same, with runs/ in it."""
    study = tmp_path / "study"
    model = RunFolder.open(two_runs[0]).config()["model"]
    shutil.copytree(two_runs[0], study / "runs" / f"bp-{model}-seed0")
    shutil.copytree(two_runs[1], study / "runs" / f"mine-{model}-seed0.1")
    shutil.copytree(two_runs[1], study / "runs" / f"mine-{model}-seed0")
    shutil.copytree(two_runs[0], study / "runs" / f"bad-{model}-seed0")
    (study / "runs" / f"mine-{model}-seed0" / "results.json").unlink()
    (study / "runs" / f"bad-{model}-seed0" / "results.json").write_text('{"failure": "loss is not finite"}')
    said: list[str] = []
    found = networks([str(study / "runs")], say=said.append)
    assert [n.name for n in found] == ["bp, seed 0", "mine, seed 0"] and len(said) == 2
    assert "loss is not finite" in said[0] and "has not ended" in said[1]
    (study / "config.yaml").write_text("kind: transfer\n")
    assert [n.name for n in networks([f"a={study}"])] == ["a bp, seed 0", "a mine, seed 0"]
    for path in study.glob("runs/*/results.json"):
        path.unlink()
    assert main(["neural", str(study), "--recording", str(small_file), "--components", "3"]) == 2
    assert "has ended: there is no network" in capsys.readouterr().err


def test_mistakes_are_said_in_a_line(
    two_runs: tuple[Path, Path], small_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bp, file = str(two_runs[0]), str(small_file)
    copy = tmp_path / "copy"
    shutil.copytree(two_runs[0], copy)
    few = tmp_path / "few.npz"
    write(few, {k: v[:30] if k in ("images", "responses") else v for k, v in arrays().items()})
    for words, said in (
        ([bp], "no recording is given"),
        (["--recording", file], "no runs are given"),
        ([str(small_file.parent), "--recording", file], "not a run folder"),
        ([bp, "--recording", str(few)], "too few for 25 components"),
        ([bp, "--recording", file, file, "--components", "3"], "two recordings have the name small"),
        ([bp, "--recording", file, "--components", "3", "--layers", "relu9"], "no layer 'relu9'; nearest: relu1"),
        ([bp, str(copy), "--recording", file, "--components", "3"], "both are bp, seed 0"),
        ([bp, "--recording", file, "--test", "0.7"], "test is 0.7"),
        ([bp, "--recording", file, "--components", "3", "--checkpoint", "besst"], "besst"),
        ([f"random={bp}", "--recording", file], "the label 'random'"),
        ([bp, "--recording", file, "--components", "3", "--out", bp], "already holds a run"),
        ([bp, "--recordings", file], "did you mean --recording"),
    ):
        assert main(["neural", *words]) == 2, words
        assert said in (line := capsys.readouterr().err) and line.count("\n") == 1, line


def test_a_failed_run_is_named(two_runs: tuple[Path, Path], small_file: Path, tmp_path: Path) -> None:
    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * float("nan")

    config = NeuralConfig((str(two_runs[0]),), (small_file,), components=3, out=tmp_path)
    model = nn.Sequential(Broken())
    layers = chosen(model, trace(model, torch.zeros(1, 1, 4, 4)), ["0"])
    pictures = Prepared(torch.zeros(60, 1, 4, 4, dtype=torch.uint8), lambda x: x.float())
    with pytest.raises(UntiedError, match="sa, seed 3: layer 0 is not finite"):
        list(command.fit_layers(model, layers, read(small_file), pictures, config, "sa, seed 3"))


# Real recordings


def test_public_files_become_recordings(shared_data: Path, tmp_path: Path) -> None:
    v4 = shared_data / "neural" / "v4"
    packed = ["--images", "jpeg_data", "--image-offsets", "jpeg_offsets", "--region", "region", "--subject", "animal"]
    assert main(["neural", "convert", str(v4 / "v4_cowley_210325.npz"), str(tmp_path / "a.npz"), *packed,
                 "--responses", "responses_raw", "--missing", "-1"]) == 0  # fmt: skip
    r = read(tmp_path / "a.npz")
    with np.load(v4 / "v4_cowley_210325.npz") as shipped:
        np.testing.assert_allclose(r.mean, shipped["responses_avg"], rtol=1e-4)
        np.testing.assert_allclose(r.reliability[0], shipped["split_half_sb"], atol=0.03)
    assert main(["neural", "convert", str(v4 / "v4_cowley_190925.npz"), str(tmp_path / "b.npz"), *packed,
                 "--responses", "responses_avg"]) == 0  # fmt: skip
    twice = read(tmp_path / "b.npz")
    assert len(np.unique(twice.groups)) == 900 and np.median(twice.reliability[0]) == pytest.approx(0.80, abs=0.01)
    assert all(not set(twice.groups[a]) & set(twice.groups[b]) for a, b in splits(twice.groups, 5, 0.2, 0))
    it = str(shared_data / "neural" / "it92_kriegeskorte2008.npz")
    assert main(["neural", "convert", it, str(tmp_path / "c.npz"),
                 "--rdm", "rdm_monkeyIT_674neurons", "rdm_humanIT_subj_session",
                 "--rdm-region", "monkey IT", "human IT"]) == 0  # fmt: skip
    monkey, human = (read(tmp_path / "c.npz").rdm[[0, slice(1, None)][i]] for i in (0, 1))
    assert rsa.similarity(monkey, human.mean(0)) == pytest.approx(0.439, abs=0.005)


def test_pixels_predict_real_neurons_less_than_a_network_may(shared_data: Path, tmp_path: Path) -> None:
    """32×32 pixels of real pictures predict real V4 neurons a little; the same, shuffled, nothing."""
    source = shared_data / "neural" / "v4" / "v4_cowley_210325.npz"
    config = convert.ConvertConfig(
        str(source), tmp_path / "r.npz", "jpeg_data", "jpeg_offsets", responses="responses_avg"
    )
    convert.convert(config, silent())
    r = read(tmp_path / "r.npz")
    small_size = np.stack([np.asarray(r.open(i).resize((16, 16))) for i in range(len(r))]).reshape(len(r), -1) / 255
    score = median(fit_responses(small_size, r, Settings())["pls.test"].mean(0))
    order = np.random.default_rng(0).permutation(len(r))
    mixed = median(fit_responses(small_size, replace(r, responses=r.responses[order]), Settings())["pls.test"].mean(0))
    assert 0.1 < score < 0.5 and abs(mixed) < 0.05


def test_neural_is_importable_without_a_command() -> None:
    assert neural.__doc__
