"""Stimuli of the simulated study `scenes`: cartoon scenes whose every attribute is known.

A scene shows one or two coloured objects on a background. Everything about it, down to the last pixel, follows from its
stimulus id (``train-000123``): nothing is stored, nothing depends on what was drawn before.

The unit of generalisation is the *concept*, kind and colour of the main object ("red apple"). The 480 concepts are
divided once and for all into 240 for training (five colours of each kind), 40 for validation and 200 for the test; the
second object of a scene, in every pool, is taken from the training concepts. So a decoder meets "red apple" in the test
having seen red things and apples, but never a red apple.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from brain2img.simulate.backgrounds import BACKGROUNDS, draw_background
from brain2img.simulate.drawing import OVERSAMPLING
from brain2img.simulate.shapes import COLOURS, KINDS, draw_object

__all__ = ["BACKGROUNDS", "COLOURS", "KINDS", "POOLS", "SIZES", "Scene", "concepts", "ids", "render", "scene"]

#: Pool -> code that seeds its scenes. "backbone" is for training the small image backbones of the simulated study,
#: "gallery" other pictures of the test concepts, which nobody sees and no backbone is trained on.
POOLS: dict[str, int] = {"train": 1, "val": 2, "test": 3, "backbone": 4, "gallery": 5}
_CONCEPTS_OF = {"backbone": "train", "gallery": "test"}

#: Size -> side of the object's box, and distance of the outer positions from the middle across and down: fractions of
#: the picture's side. `features` standardises x, y and scale by constants measured on these; change them together.
SIZES: dict[str, tuple[float, float, float]] = {
    "small": (0.36, 0.232, 0.203), "medium": (0.48, 0.226, 0.203), "large": (0.62, 0.18, 0.176)}
_MIDDLE = (0.5, 0.517)

_HORIZONTAL = ("left", "centre", "right")
_VERTICAL = ("top", "middle", "bottom")
_N_TEST = 200
_N_INDICES = 1_000_000
_SECOND_SCALE = 0.28
_P_SECOND = 0.5

#: What a generator is for, so that a scene's attributes and its background draw from separate streams.
_ATTRIBUTES, _PIXELS, _ORDER = 0, 1, 2

_PLACES = {
    ("left", "top"): "at the top left", ("centre", "top"): "at the top", ("right", "top"): "at the top right",
    ("left", "middle"): "on the left", ("centre", "middle"): "in the middle", ("right", "middle"): "on the right",
    ("left", "bottom"): "at the bottom left", ("centre", "bottom"): "at the bottom",
    ("right", "bottom"): "at the bottom right"}


def _article(phrase: str) -> str:
    """Phrase with its article, as ``an orange fir``; trousers come in pairs."""
    article = "a pair of" if phrase.endswith("trousers") else "an" if phrase[0] in "aeiou" else "a"
    return f"{article} {phrase}"


@dataclass(frozen=True)
class Scene:
    """One stimulus, described completely.

    Attributes
    ----------
    stimulus_id : str
        Pool and index, as ``train-000123``; also seeds what varies in the background.
    kind, colour : str
        Main object: keys of `KINDS` and `COLOURS`.
    background : str
        A key of `BACKGROUNDS`.
    size : str
        ``small``, ``medium`` or ``large``.
    position_x, position_y : str
        ``left``, ``centre``, ``right``; ``top``, ``middle``, ``bottom``.
    x, y : float
        Middle of the main object, fractions of the picture's side in [0, 1]; y points down.
    scale : float
        Side of the main object's box, fraction of the picture's side in [0, 1].
    second_kind, second_colour : str or None
        Second object, always small; None when there is none.
    second_x, second_y, second_scale : float or None
        Its geometry, as above.
    """

    stimulus_id: str
    kind: str
    colour: str
    background: str
    size: str
    position_x: str
    position_y: str
    x: float
    y: float
    scale: float
    second_kind: str | None = None
    second_colour: str | None = None
    second_x: float | None = None
    second_y: float | None = None
    second_scale: float | None = None

    @property
    def concept(self) -> str:
        """Colour and kind of the main object, as ``red apple``."""
        return f"{self.colour} {self.kind}"

    @property
    def category(self) -> str:
        """Superordinate category of the main object, as ``fruit``."""
        return KINDS[self.kind]

    @property
    def captions(self) -> tuple[str, ...]:
        """Three paraphrases; the first is `caption`, the last leaves out size and position."""
        where = BACKGROUNDS[self.background][0]
        second = f" and {_article(f'{self.second_colour} {self.second_kind}')}" if self.second_kind else ""
        placed = f"{_article(f'{self.size} {self.concept}')} {_PLACES[self.position_x, self.position_y]}{second}"
        return f"{placed}, {where}", f"{where}: {placed}", f"{_article(self.concept)}{second} {where}"

    @property
    def caption(self) -> str:
        """A sentence that names every categorical attribute."""
        return self.captions[0]

    @property
    def attributes(self) -> dict[str, str | float]:
        """All attributes under flat names, of JSON types: strings, and the numbers x, y and scale in [0, 1]."""
        return {
            "kind": self.kind,
            "category": self.category,
            "colour": self.colour,
            "background": self.background,
            "size": self.size,
            "horizontal": self.position_x,
            "vertical": self.position_y,
            "n_objects": "two" if self.second_kind else "one",
            "second_kind": self.second_kind or "none",
            "second_colour": self.second_colour or "none",
            "x": self.x,
            "y": self.y,
            "scale": self.scale,
        }


def _scramble(*numbers: int) -> int:
    """64-bit hash of integers (splitmix64): fixed for ever, unlike Python's hash and numpy's distributions."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) % 2**64
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
        state ^= state >> 31
    return state


@lru_cache(maxsize=1)
def _partition() -> dict[str, tuple[str, ...]]:
    """Concepts of train, val and test.

    Each kind gives five colours to training, four to the test and one to validation (to the test for every sixth kind).
    Within a block of ten kinds a scrambled circle of colours moves on by one colour a kind, so each colour has its
    even share of every pool.
    """
    pools: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    names = list(COLOURS)
    for k, kind in enumerate(KINDS):
        block, step = divmod(k, len(names))
        circle = sorted(range(len(names)), key=lambda c: _scramble(1, block, c))
        for place in range(len(names)):
            pool = "train" if place < 5 else "test" if place < 9 or k % 6 == 5 else "val"
            pools[pool].append(f"{names[circle[(place + step) % len(names)]]} {kind}")
    # Scrambled, so that the first few test stimuli are not all animals.
    everything = [concept for members in pools.values() for concept in members]
    place_of = {concept: _scramble(2, i) for i, concept in enumerate(everything)}
    result = {pool: tuple(sorted(members, key=place_of.__getitem__)) for pool, members in pools.items()}
    assert [len(result[pool]) for pool in ("train", "val", "test")] == [240, 40, _N_TEST]
    return result


def _check_pool(pool: str) -> None:
    """Refuse an unknown pool."""
    if pool not in POOLS:
        raise ValueError(f"pool of stimuli: expected one of {', '.join(POOLS)}, got {pool!r}. "
                         "Choose a key of scenes.POOLS.")


def concepts(pool: str) -> tuple[str, ...]:
    """Concepts whose main objects a pool shows.

    Parameters
    ----------
    pool : str
        ``train`` and ``backbone`` (the same 240 concepts), ``val`` (40), or ``test`` and ``gallery`` (200).

    Returns
    -------
    tuple of str
        Concepts, as ``red apple``, in a fixed scrambled order; no concept is in two of train, val and test.

    Raises
    ------
    ValueError
        If the pool is unknown.
    """
    _check_pool(pool)
    return _partition()[_CONCEPTS_OF.get(pool, pool)]


def ids(pool: str, n: int, *, start: int = 0) -> list[str]:
    """Stimulus ids of a pool.

    Parameters
    ----------
    pool : str
        A key of `POOLS`.
    n : int
        How many; the test pool has 200 stimuli, one per concept, the others a million each.
    start : int
        Index of the first.

    Returns
    -------
    list of str
        ``{pool}-{index:06d}`` for index in ``range(start, start + n)``.

    Raises
    ------
    ValueError
        If the pool is unknown, or the range leaves it.
    """
    _check_pool(pool)
    available = _N_TEST if pool == "test" else _N_INDICES
    if n < 0 or start < 0 or start + n > available:
        raise ValueError(f"stimuli of {pool}: expected indices from 0 to {available - 1}, got start={start} and n={n}. "
                         "Ask for fewer stimuli.")
    return [f"{pool}-{index:06d}" for index in range(start, start + n)]


def _parse(stimulus_id: str) -> tuple[str, int]:
    """Pool and index of a stimulus id."""
    match = re.fullmatch(rf"({'|'.join(POOLS)})-([0-9]{{6}})", stimulus_id)
    if match is None:
        raise ValueError(
            f"stimulus id: expected <pool>-<six digits> with a pool of {', '.join(POOLS)}, got {stimulus_id!r}. "
            "Make ids with scenes.ids(pool, n)."
        )
    pool, index = match[1], int(match[2])
    if pool == "test" and index >= _N_TEST:
        raise ValueError(f"stimulus id: expected test-000000 to test-{_N_TEST - 1:06d}, got {stimulus_id!r}. "
                         "The test pool has one stimulus per concept.")
    return pool, index


def _generator(pool: str, index: int, purpose: int) -> np.random.Generator:
    """Generator of one purpose for one stimulus; only its `random()` is used, the most stable of its streams."""
    return np.random.Generator(np.random.PCG64([20240, POOLS[pool], purpose, index]))


@lru_cache(maxsize=256)
def _order(pool: str, lap: int) -> tuple[int, ...]:
    """Order in which lap number `lap` through the concepts of a pool visits them."""
    draws = _generator(pool, lap, _ORDER).random(len(concepts(pool)))
    return tuple(np.argsort(draws, kind="stable").tolist())


def _concept_of(pool: str, index: int) -> str:
    """Concept of a stimulus: the n-th of the test; elsewhere lap after lap through all, each lap in its own order."""
    members = concepts(pool)
    lap, place = divmod(index, len(members))
    return members[index] if pool == "test" else members[_order(pool, lap)[place]]


def _overlap(a: tuple[float, float, float], b: tuple[float, float, float]) -> float:
    """Area shared by two square boxes (x, y, side), as a share of the second."""
    width, height = ((a[2] + b[2]) / 2 - abs(a[i] - b[i]) for i in (0, 1))
    return max(0.0, min(width, b[2])) * max(0.0, min(height, b[2])) / b[2] ** 2


def scene(stimulus_id: str) -> Scene:
    """Describe one stimulus.

    Parameters
    ----------
    stimulus_id : str
        ``{pool}-{index:06d}``, see `ids`.

    Returns
    -------
    Scene
        The same for the same id, always.

    Raises
    ------
    ValueError
        If the id is malformed or out of range.
    """
    pool, index = _parse(stimulus_id)
    generator = _generator(pool, index, _ATTRIBUTES)

    def pick(options: tuple[str, ...]) -> str:
        return options[int(generator.random() * len(options))]

    def jitter(width: float) -> float:
        return (2 * float(generator.random()) - 1) * width

    colour, kind = _concept_of(pool, index).split(" ")
    background, size = pick(tuple(BACKGROUNDS)), pick(tuple(SIZES))
    horizontal, vertical = pick(_HORIZONTAL), pick(_VERTICAL)
    base, across, down = SIZES[size]
    scale = base * (1 + jitter(0.08))

    def place(middle: float, reach: float, step: int) -> float:
        wanted = middle + reach * step + jitter(0.035)
        return round(min(max(wanted, scale / 2 + 0.01), 1 - scale / 2 - 0.01), 4)

    x = place(_MIDDLE[0], across, _HORIZONTAL.index(horizontal) - 1)
    y = place(_MIDDLE[1], down, _VERTICAL.index(vertical) - 1)
    main = Scene(stimulus_id, kind, colour, background, size, horizontal, vertical, x=x, y=y, scale=round(scale, 4))
    if generator.random() >= _P_SECOND:
        return main

    # From training concepts in every pool, and of another kind and colour, so that a caption tells the two apart.
    others = tuple(c for c in concepts("train") if colour not in c.split(" ") and kind not in c.split(" "))
    second_colour, second_kind = pick(others).split(" ")
    side = _SECOND_SCALE * (1 + jitter(0.06))
    spots = [(0.5 + 0.34 * i + jitter(0.015), 0.5 + 0.34 * j + jitter(0.015)) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    shared = [_overlap((main.x, main.y, main.scale), (*spot, side)) for spot in spots]
    free = [spot for spot, share in zip(spots, shared, strict=True) if share <= 0.08] or [spots[int(np.argmin(shared))]]
    second_x, second_y = free[int(generator.random() * len(free))]
    geometry = {"second_x": round(second_x, 4), "second_y": round(second_y, 4), "second_scale": round(side, 4)}
    return Scene(**vars(main) | {"second_kind": second_kind, "second_colour": second_colour} | geometry)


def render(scene: Scene, *, size: int = 64) -> np.ndarray:
    """Draw one stimulus.

    Parameters
    ----------
    scene : Scene
        What to draw; a changed copy (``dataclasses.replace``) is drawn as it says, on the same background.
    size : int
        Side of the picture in pixels, at least 32.

    Returns
    -------
    numpy.ndarray
        Picture (size, size, 3), uint8 in 0..255, RGB.

    Raises
    ------
    ValueError
        If the size is too small or the scene names an unknown kind, colour or background.
    """
    if size < 32:
        raise ValueError(f"size of a scene: expected at least 32 pixels, got {size}. Ask for 64 or 128.")
    generator = _generator(*_parse(scene.stimulus_id), _PIXELS)
    canvas = draw_background(scene.background, side=OVERSAMPLING * size, generator=generator)
    # The second object first: where the two touch, the main one is in front.
    if scene.second_kind is not None:
        second = (scene.second_colour, scene.second_x, scene.second_y, scene.second_scale)
        colour, x, y, scale = second
        if colour is None or x is None or y is None or scale is None:
            raise ValueError(f"second object of {scene.stimulus_id}: expected colour, x, y and scale, got {second}. "
                             "Set them all.")
        draw_object(canvas, kind=scene.second_kind, colour=colour, centre=(x, y), scale=scale)
    draw_object(canvas, kind=scene.kind, colour=scene.colour, centre=(scene.x, scene.y), scale=scene.scale)
    return np.array(canvas.reduce(OVERSAMPLING))
