"""PixCorr, MSE and SSIM against SciPy and scikit-image; their chance levels and messages."""

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr
from skimage.color import rgb2gray
from skimage.data import astronaut
from skimage.metrics import mean_squared_error, structural_similarity

from brain2img.metrics.mse import MSE
from brain2img.metrics.pairing import ImagePairs, repairings
from brain2img.metrics.pixcorr import PixCorr
from brain2img.metrics.ssim import SSIM
from brain2img.records import Decoded

METRICS = [PixCorr(), PixCorr(name="pcc"), MSE(), SSIM(), SSIM(kind="default")]


def picture(rng, n, side):
    """Crops of a photograph: flat regions, edges and texture."""
    photo = astronaut()
    places = rng.integers(0, 512 - side, size=(n, 2))
    return np.stack([photo[a:a + side, b:b + side] for a, b in places])


def decoded(images, gallery, truth=None):
    truth = np.arange(len(images)) if truth is None else np.asarray(truth)
    return Decoded(truth=truth, gallery_ids=tuple(f"s{i}" for i in range(len(gallery))), images=images,
                   gallery_images=gallery)


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    gallery = picture(rng, 9, 40)
    truth = np.array([3, 8, 8, 0, 1, 2])
    noise = rng.normal(0, 40, gallery[truth].shape)
    images = np.clip(gallery[truth] + noise, 0, 255).astype(np.uint8)
    images[4] = gallery[1]
    images[5] = 0
    return decoded(images, gallery, truth)


def pairs(data):
    return [(a / 255, data.gallery_images[t] / 255) for a, t in zip(data.images, data.truth, strict=True)]


def ssim(a, b, kind):
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False} if kind == "field" else {}
    return structural_similarity(rgb2gray(a), rgb2gray(b), data_range=1.0, **options)


def test_pixcorr_equals_scipy(data):
    got = PixCorr().score(data)["value"].to_numpy()
    reference = [pearsonr(a.ravel(), b.ravel())[0] for a, b in pairs(data)[:5]]
    np.testing.assert_allclose(got[:5], reference, atol=1e-12)
    assert got[5] == 0  # a constant image


def test_mse_equals_scikit_image(data):
    reference = [mean_squared_error(a, b) for a, b in pairs(data)]
    np.testing.assert_allclose(MSE().score(data)["value"], reference, atol=1e-12)


@pytest.mark.parametrize("kind", ["field", "default"])
def test_ssim_equals_scikit_image(data, kind):
    reference = [ssim(a, b, kind) for a, b in pairs(data)]
    np.testing.assert_allclose(SSIM(kind=kind).score(data)["value"], reference, atol=1e-9)


@pytest.mark.parametrize("metric", [PixCorr(size=56, antialias=False), SSIM(size=56, antialias=False)])
def test_a_fixed_size_equals_resizing_with_torchvision_first(data, metric):
    from torchvision.transforms.functional import resize

    large = np.repeat(np.repeat(data.images, 2, axis=1), 2, axis=2)  # 80 x 80, so that one shrinks and one grows
    got = metric.score(decoded(large, data.gallery_images, data.truth))["value"].to_numpy()
    both = [resize(torch.from_numpy(x).permute(0, 3, 1, 2) / 255, [56, 56], antialias=False).permute(0, 2, 3, 1).numpy()
            for x in (large, data.gallery_images[data.truth])]
    if isinstance(metric, PixCorr):
        reference = [pearsonr(a.ravel(), b.ravel())[0] for a, b in zip(*[x[:5] for x in both], strict=True)]
    else:
        reference = [ssim(a.astype(float), b.astype(float), "field") for a, b in zip(*both, strict=True)]
    np.testing.assert_allclose(got[:len(reference)], reference, atol=1e-5)


def test_a_larger_reconstruction_is_compared_at_the_size_of_the_stimulus(data):
    large = np.repeat(np.repeat(data.images, 4, axis=1), 4, axis=2)
    assert ImagePairs(decoded(large, data.gallery_images, data.truth)).shape == (40, 40)
    # antialiasing spreads a block beyond its pixel, so that it is close to and not equal to the small one
    np.testing.assert_allclose(MSE().score(decoded(large, data.gallery_images, data.truth))["value"],
                               MSE().score(data)["value"], atol=0.02)


@pytest.mark.parametrize("metric", METRICS)
def test_a_perfect_reconstruction(metric):
    gallery = picture(np.random.default_rng(0), 5, 28)
    perfect = metric.score(decoded(gallery, gallery))["value"].to_numpy()
    np.testing.assert_allclose(perfect, 0.0 if metric.names == ("mse",) else 1.0, atol=1e-9)


@pytest.mark.parametrize("metric", METRICS)
def test_does_not_depend_on_order_or_chunk(metric, data, monkeypatch):
    before = metric.score(data)["value"].to_numpy()
    level = metric.chance(data, generator=np.random.default_rng(0))["chance"].item()
    rows, places = np.random.default_rng(1).permutation(6), np.random.default_rng(2).permutation(9)
    other = decoded(data.images[rows], data.gallery_images[places], np.argsort(places)[data.truth[rows]])
    np.testing.assert_allclose(metric.score(other)["value"], before[rows], atol=1e-12)
    monkeypatch.setattr("brain2img.metrics.pairing._VALUES_AT_ONCE", 2 * 40 * 40 * 3)
    np.testing.assert_allclose(metric.score(data)["value"], before, atol=1e-12)
    assert metric.chance(data, generator=np.random.default_rng(0))["chance"].item() == pytest.approx(level, abs=1e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_chance_is_the_mean_over_pairs(metric):
    rng = np.random.default_rng(0)
    gallery, images = picture(rng, 12, 20), picture(rng, 12, 20)
    everything = [metric.score(decoded(images, gallery, np.roll(np.arange(12), k)))["value"].to_numpy()
                  for k in range(12)]
    line = metric.chance(decoded(images, gallery), generator=rng).iloc[0]
    assert (line["metric"], line["chance_kind"]) == (metric.names[0], "re-pairing")
    error = 3.29 * np.std(everything) / np.sqrt(200 * 12)
    assert abs(line["chance"] - np.mean(everything)) < error


def test_chance_of_large_images_uses_a_part_of_the_pairs(monkeypatch):
    rng = np.random.default_rng(0)
    gallery, images = picture(rng, 12, 20), picture(rng, 12, 20)
    full = MSE().chance(decoded(images, gallery), generator=rng)["chance"].item()
    monkeypatch.setattr("brain2img.metrics.pairing._VALUES_FOR_CHANCE", 1)
    assert MSE().chance(decoded(images, gallery), generator=rng)["chance"].item() == pytest.approx(full, rel=0.2)


def test_repairings_permute_the_rows():
    truth = np.array([4, 4, 7, 9])
    drawn = repairings(truth, 10, generator=np.random.default_rng(0))
    assert drawn.shape == (200, 4)
    assert (np.sort(drawn, axis=1) == np.sort(truth)).all()
    # every stimulus falls on the first row as often as it occurs (99.9 % intervals)
    share = (drawn[:, 0] == 4).mean()
    assert abs(share - 0.5) < 3.29 * 0.5 / np.sqrt(200)


def test_one_row_is_re_paired_with_the_gallery():
    rng = np.random.default_rng(0)
    gallery = picture(rng, 10, 20)
    data = decoded(gallery[2:3], gallery, [2])
    assert PixCorr().score(data)["value"].item() == pytest.approx(1)
    assert PixCorr().chance(data, generator=rng)["chance"].item() < 0.9


def test_chance_filters_few_images_and_a_part_of_the_pairs(monkeypatch):
    # the filters take the time of it: counted here, for seconds depend on what else the machine does
    from brain2img.metrics import pairing, ssim

    rng = np.random.default_rng(0)
    data = decoded(picture(rng, 200, 64), picture(rng, 200, 64))
    filtered, pairs, images = [], [], []
    mean, similarity = ssim._mean, ssim.structural_similarity

    def counted(images, taps):
        filtered.append(len(images))
        return mean(images, taps)

    def noted(x, y, i, j, *, kind):
        pairs.append(len(i))
        images.append(len(x) + len(y))
        return similarity(x, y, i, j, kind=kind)

    monkeypatch.setattr(ssim, "_mean", counted)
    monkeypatch.setattr(ssim, "structural_similarity", noted)
    SSIM().chance(data, generator=rng)
    assert 200 < sum(pairs) <= pairing._VALUES_FOR_CHANCE // 64**2 < 200 * 200
    assert 2 * sum(images) < sum(pairs)  # not anew for every pair
    assert sum(filtered) == 2 * sum(images) + sum(pairs)


def test_messages(data):
    with pytest.raises(ValueError, match="reconstructions: expected images, got none"):
        SSIM().score(Decoded(truth=data.truth, gallery_ids=data.gallery_ids, gallery_images=data.gallery_images))
    with pytest.raises(ValueError, match=r"reconstructions: expected \(6, h, w, 3\) uint8 images.*float64"):
        MSE().score(decoded(data.images / 255, data.gallery_images, data.truth))
    with pytest.raises(ValueError, match=r"stimuli: expected \(9, h, w, 3\)"):
        PixCorr().score(decoded(data.images, data.gallery_images[..., :1], data.truth))
    with pytest.raises(ValueError, match="expected sides of at least 11 pixels"):
        SSIM().score(decoded(data.images[:, :8, :8], data.gallery_images[:, :8, :8], data.truth))
    with pytest.raises(ValueError, match="ssim: expected a kind of"):
        SSIM(kind="columns")
