"""Bayesian reconstruction of simple shapes from few trials of brain activity.

The image is decoded in three steps, all of them fitted on the training trials alone.

1. *Decode codes.* Voxels are weighted by how well images predict them (leave-one-out R^2 of a ridge encoding model) and
   kernel ridge regressions (linear and Gaussian kernel, averaged) map them to a few principal components of the image.
2. *Posterior over a dictionary.* The image prior is a dictionary of thousands of plausible shapes: the training images
   under random affine, elastic and stroke-width changes. How decoded codes scatter around the true ones is measured on
   predictions for trials left out of the regression, as a Gaussian; Bayes' rule turns it into a weight for each shape.
3. *Bayes action.* The returned image maximises the expected SSIM minus a multiple of the expected squared error under
   that posterior. The posterior mean alone is best for squared error but blurred, with a haze SSIM punishes.

Sources
-------
* Naselaris et al. 2009, "Bayesian reconstruction of natural images from human brain activity",
  https://doi.org/10.1016/j.neuron.2009.09.006 (posterior over a large set of candidate images).
* Schoenmakers et al. 2013, "Linear reconstruction of perceived images from human brain activity",
  https://doi.org/10.1016/j.neuroimage.2013.07.043 (Gaussian version, handwritten characters).
* Simard et al. 2003, "Best practices for convolutional neural networks applied to visual document analysis",
  https://doi.org/10.1109/ICDAR.2003.1227801 (elastic distortion of digits).
* Wang et al. 2004, "Image quality assessment", https://doi.org/10.1109/TIP.2003.819861 (SSIM).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.covariance import ledoit_wolf

from brain2img.decoders.code_regression import CodeRegression, squared_distances
from brain2img.decoders.shape_dictionary import jittered, smoothing
from brain2img.metrics.ssim import structural_similarity
from brain2img.schedule import cosine_ramp

Array = NDArray[Any]

_MIN_TRIALS = 20
_INNER_FOLDS = 10
_TEMPERATURES = (1.0, 1.25, 1.5, 2.0, 2.5)
_SSIM_WINDOW = 7  # pixels
_CHUNK = 1000


def _bayes_action(mean: Array, draws: Array, fidelity: float, steps: int) -> Array:
    """Images (m, h, h) in [0, 1] that maximise mean SSIM to ``draws`` minus ``fidelity`` times the squared error.

    ``mean`` (m, h, h) is the posterior mean, ``draws`` (m, k, h, h) equally weighted posterior draws. Adam, started at
    the mean and projected onto [0, 1], on the SSIM that the metric computes (scikit-image's defaults).
    """
    start, drawn = torch.from_numpy(mean)[:, None], torch.from_numpy(draws).flatten(0, 1)[:, None]
    pairs = torch.arange(len(drawn))
    images = start.clone().requires_grad_()
    adam = torch.optim.Adam([images], betas=(0.9, 0.99), maximize=True)
    for step in range(1, steps + 1):
        adam.param_groups[0]["lr"] = cosine_ramp(0.05, 0.0, step=step, n_steps=steps + 1)
        adam.zero_grad()
        similar = structural_similarity(images, drawn, pairs // draws.shape[1], pairs, kind="default")
        gain = similar.sum() / draws.shape[1] - fidelity * ((images - start) ** 2).mean(dim=(1, 2, 3)).sum()
        gain.backward()
        adam.step()
        images.data.clamp_(0, 1)
    return images.detach()[:, 0].numpy()


class ShapePosterior:
    """Reconstruct shapes on a dark background (digits, letters) from a few dozen trials.

    Parameters
    ----------
    dictionary_size : int, shapes in the image prior; more lower the Monte-Carlo error of the posterior.
    code_count : int, principal components decoded (at most a third of the trials).
    code_blur : float, blur before the components are taken, pixels of a 28-pixel-wide image.
    fidelity : float >= 0, weight of the expected squared error against the expected SSIM in the returned image;
        0 maximises SSIM alone, large values approach the posterior mean.
    draws : int, posterior draws that stand for the posterior when the expected SSIM is computed.
    steps : int, gradient steps; 0 returns the posterior mean.
    jitter : float >= 0, how far dictionary shapes stray from the training images, in units of the built-in amounts.
    seed : int, of the dictionary and the inner folds.
    """

    _names = ("dictionary", "atoms", "whitener", "temperature", "fidelity", "draws", "steps")

    def __init__(
        self,
        *,
        dictionary_size: int = 16000,
        code_count: int = 20,
        code_blur: float = 1.0,
        fidelity: float = 20.0,
        draws: int = 64,
        steps: int = 30,
        jitter: float = 1.0,
        seed: int = 0,
    ) -> None:
        counts = {"dictionary_size": dictionary_size, "code_count": code_count, "draws": draws}
        others = {"code_blur": code_blur, "fidelity": fidelity, "steps": steps, "jitter": jitter}
        for name, value in (counts | others).items():
            if not value >= (least := int(name in counts)):
                raise ValueError(f"{name}: expected at least {least}, got {value}. Raise it.")
        self.dictionary_size, self.code_count, self.code_blur = dictionary_size, code_count, code_blur
        self.fidelity, self.draws, self.steps, self.jitter, self.seed = fidelity, draws, steps, jitter, seed
        self._regression: CodeRegression | None = None

    def fit(self, signals: ArrayLike, images: ArrayLike) -> ShapePosterior:
        """Learn from training trials.

        Parameters
        ----------
        signals : (n, V) float, one response a trial and voxel, any unit; n >= 20.
        images : (n, h, h) float in [0, 1], the stimuli, h >= 7 pixels.
        """
        voxels = _checked_signals(signals)
        shown = _checked_images(images, len(voxels))
        rng = np.random.default_rng(self.seed)
        source = np.arange(max(self.dictionary_size, len(shown))) % len(shown)
        parts = [jittered(shown[chunk], self.jitter, rng) for chunk in _chunks(source)]
        # 8 bits a pixel is the precision of the stimuli and keeps the stored prior small
        self.dictionary = np.rint(np.concatenate(parts) * 255).astype(np.uint8)
        self._blur = smoothing(shown.shape[1], self.code_blur * shown.shape[1] / 28)
        sample = self._blurred(self.dictionary[rng.permutation(len(source))[:4000]])
        self.code_mean = sample.mean(0)
        count = min(self.code_count, len(shown) // 3, sample.shape[1])
        basis = np.linalg.eigh(np.cov((sample - self.code_mean).T))[1]
        self.code_basis = basis[:, ::-1][:, :count].astype(np.float32)
        true = self._codes(shown).astype(float)
        atoms = np.concatenate([self._codes(self.dictionary[chunk]) for chunk in _chunks(np.arange(len(source)))])
        guessed = np.zeros_like(true)
        for held in np.array_split(rng.permutation(len(true)), _INNER_FOLDS):
            rest = np.setdiff1d(np.arange(len(true)), held)
            guessed[held] = CodeRegression().fit(voxels[rest], true[rest]).predict(voxels[held])
        self._regression = CodeRegression().fit(voxels, true)
        self._fit_likelihood(guessed, true, atoms)
        self._fit_temperature(guessed, shown, source)
        return self

    def _fit_likelihood(self, guessed: Array, true: Array, atoms: Array) -> None:
        """Model left-out codes as slope * true + offset + Gaussian noise; whiten so that the noise is unit."""
        spread = np.maximum(true.var(0), 1e-9)
        slope = ((true - true.mean(0)) * (guessed - guessed.mean(0))).mean(0) / spread
        error = guessed - slope * true
        offset = error.mean(0)
        noise = ledoit_wolf(error - offset, assume_centered=True)[0]
        noise += 1e-9 * max(float(np.trace(noise)), 1e-9) * np.eye(len(noise))
        self.whitener = np.linalg.cholesky(np.linalg.inv(noise))
        self.atoms = ((slope * atoms + offset) @ self.whitener).astype(np.float32)

    def _fit_temperature(self, guessed: Array, shown: Array, source: Array) -> None:
        """Choose how much to flatten the posterior: noise covariance and prior come from few trials."""
        own = np.arange(len(shown))[:, None] == source
        # a trial's own variants are barred: they would make any posterior look too good
        means = [self._expected(self._posterior(guessed, value, barred=own)) for value in _TEMPERATURES]
        errors = [float(((mean - shown) ** 2).mean()) for mean in means]
        self.temperature = _TEMPERATURES[int(np.argmin(errors))]

    def predict(self, signals: ArrayLike) -> Array:
        """Reconstruct images (m, h, h), float in [0, 1], from signals (m, V) in the unit seen in training."""
        if self._regression is None:
            raise ValueError("model: expected a fitted one, got none. Call fit or load_state first.")
        voxels = _checked_signals(signals)
        if voxels.shape[1] != len(self._regression.centre):
            known = len(self._regression.centre)
            raise ValueError(f"signals: expected {known} voxels, got {voxels.shape[1]}. Use the mask of fit.")
        images = np.zeros((len(voxels), *self.dictionary.shape[1:]))
        quantiles = (np.arange(self.draws) + 0.5) / self.draws
        for chunk in _chunks(np.arange(len(voxels)), size=16):
            weights = self._posterior(self._regression.predict(voxels[chunk]), self.temperature)
            mean = self._expected(weights)
            # systematic resampling (Kitagawa 1996): deterministic, so the same signals give the same image
            picks = np.stack([np.searchsorted(np.cumsum(row) / row.sum(), quantiles) for row in weights])
            chosen = self.dictionary[np.minimum(picks, len(self.dictionary) - 1)].astype(np.float32) / 255
            images[chunk] = _bayes_action(mean, chosen, self.fidelity, self.steps)
        return images

    def state(self) -> dict[str, Array]:
        """Everything ``predict`` needs, as arrays to save."""
        if self._regression is None:
            raise ValueError("model: expected a fitted one, got none. Call fit first.")
        parts = {f"regression_{name}": np.asarray(getattr(self._regression, name)) for name in CodeRegression.names}
        return parts | {name: np.asarray(getattr(self, name)) for name in self._names}

    def load_state(self, state: dict[str, Array]) -> None:
        """Restore what ``state`` returned."""
        wanted = {*self._names, *(f"regression_{name}" for name in CodeRegression.names)}
        if missing := sorted(wanted - set(state)):
            raise ValueError(f"state: expected all of this model's arrays, got none for {missing}. Save it anew.")
        self._regression = CodeRegression()
        for name in wanted:
            value = np.asarray(state[name])
            owner = self._regression if name.startswith("regression_") else self
            setattr(owner, name.removeprefix("regression_"), value if value.ndim else value.item())

    def _blurred(self, images: Array) -> Array:
        """Blurred images (n, h * h) in [0, 1] from float ones, or from the dictionary's 8-bit ones."""
        values = images.astype(np.float32) / (255 if images.dtype == np.uint8 else 1)
        return (self._blur @ values @ self._blur.T).reshape(len(images), -1)

    def _codes(self, images: Array) -> Array:
        """Image codes (n, k)."""
        return (self._blurred(images) - self.code_mean) @ self.code_basis

    def _posterior(self, codes: Array, temperature: float, *, barred: Array | None = None) -> Array:
        """Posterior weights (m, dictionary_size) of the shapes given decoded codes (m, k); rows sum to 1."""
        energy = -0.5 / temperature * squared_distances((codes @ self.whitener).astype(np.float32), self.atoms)
        if barred is not None:
            energy[barred] = -np.inf
        weights = np.exp(energy - energy.max(1, keepdims=True))
        return weights / weights.sum(1, keepdims=True)

    def _expected(self, weights: Array) -> Array:
        """Posterior mean images (m, h, h) in [0, 1]."""
        total = np.zeros((len(weights), self.dictionary[0].size), np.float32)
        for chunk in _chunks(np.arange(len(self.dictionary))):
            total += weights[:, chunk] @ self.dictionary[chunk].reshape(len(chunk), -1).astype(np.float32)
        return total.reshape(-1, *self.dictionary.shape[1:]) / 255


def _chunks(indices: Array, size: int = _CHUNK) -> list[Array]:
    """Consecutive pieces of an index array, to bound memory."""
    return [indices[start : start + size] for start in range(0, len(indices), size)]


def _checked_signals(signals: ArrayLike) -> Array:
    """Signals as a finite float matrix (n, V)."""
    voxels = np.asarray(signals, float)
    if voxels.ndim != 2 or voxels.shape[1] == 0 or not np.isfinite(voxels).all():
        raise ValueError(f"signals: expected finite (trials, voxels), got shape {voxels.shape}. Drop bad voxels.")
    return voxels


def _checked_images(images: ArrayLike, rows: int) -> Array:
    """Images as a float32 array (n, h, h) in [0, 1], one for each of the ``rows`` of signals."""
    shown = np.asarray(images, np.float32)
    if shown.ndim != 3 or shown.shape[1] != shown.shape[2] or shown.shape[1] < _SSIM_WINDOW:
        raise ValueError(
            f"images: expected (n, h, h) with h >= {_SSIM_WINDOW}, got {shown.shape}. Pad them to squares."
        )
    if len(shown) != rows or rows < _MIN_TRIALS:
        got = f"{len(shown)} images and {rows} rows"
        raise ValueError(f"trials: expected {_MIN_TRIALS} or more images, one a row, got {got}. Pass all trials.")
    if not (np.isfinite(shown).all() and shown.min() >= 0 and shown.max() <= 1):
        raise ValueError("images: expected values in [0, 1], got others. Divide 8-bit images by 255.")
    if np.ptp(shown, axis=0).max() == 0:
        raise ValueError("images: expected different images, got one for all trials. Check the pairing.")
    return shown
