"""What a metric scores, at three qualities, of 60 stimuli: embeddings, pictures, captions, attributes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from brain2img.interfaces import Metric
from brain2img.records import Decoded, EmbeddingSpec

N = 60
WORDS = {"kind": ("cat", "dog", "owl", "car"), "colour": ("red", "green", "blue"), "size": ("small", "large"),
         "background": ("night", "grass", "sand")}
LABELS = tuple(f"{name}={value}" for name, values in WORDS.items() for value in values)


def decoded_of(metric: Metric) -> Callable[[str], Decoded]:
    """Return a function that returns what was decoded: "perfect", "chance", "same" or "perfect reversed" rows."""
    rng = np.random.default_rng(0)
    attributes = [{name: values[rng.integers(len(values))] for name, values in WORDS.items()} for _ in range(N)]
    captions = [[f"a {a['size']} {a['colour']} {a['kind']} on {a['background']}", f"the {a['kind']}"]
                for a in attributes]
    one_hot = np.array([[float(a[label.split("=")[0]] == label.split("=")[1]) for label in LABELS] for a in attributes])
    true = {"clip": rng.standard_normal((N, 24)), "attributes": one_hot}
    coarse = rng.integers(0, 255, (N, 4, 4, 3), dtype=np.uint8)
    images = np.kron(coarse, np.ones((1, 8, 8, 1), dtype=np.uint8))
    noise = {space: rng.standard_normal(x.shape) for space, x in true.items()}
    features = {"judge": true["clip"], "judge_attributes": one_hot}
    specs = {"clip": EmbeddingSpec(name="clip", shape=(24,)),
             "attributes": EmbeddingSpec(name="attributes", shape=(len(LABELS),), labels=LABELS),
             "judge": EmbeddingSpec(name="judge", shape=(24,)),
             "judge_attributes": EmbeddingSpec(name="judge_attributes", shape=(len(LABELS),), labels=LABELS)}

    def make(kind: str) -> Decoded:
        places = np.arange(N)[::-1] if kind == "perfect reversed" else np.arange(N)
        # noise that has met no stimulus: each row decodes another stimulus than its own
        shown = places if kind.startswith("perfect") else np.random.default_rng(1).permutation(N)
        if kind == "same":
            shown = np.zeros(N, dtype=int)

        def of(x: np.ndarray, drawn: np.ndarray) -> np.ndarray:
            return x[shown] if kind != "chance" else drawn

        pictures = "images" in metric.needs
        said = [captions[i][0] for i in shown]
        return Decoded(
            truth=places, gallery_ids=tuple(f"s{i}" for i in range(N)),
            embeddings={} if pictures else {s: of(x, noise[s]).astype(np.float32) for s, x in true.items()},
            gallery={} if pictures else {s: x.astype(np.float32) for s, x in true.items()}, specs=specs,
            images=images[shown] if pictures else None, gallery_images=images,
            features={s: of(x, noise["clip" if s == "judge" else "attributes"]) for s, x in features.items()},
            gallery_features=features, feature_specs=specs, captions=said, gallery_captions=captions,
            gallery_attributes=attributes)

    return make
