"""Of several pictures of a trial the one most like what was decoded is shown, and the true picture is never asked."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from brain2img.interfaces import Reconstructor
from brain2img.reconstructors.candidates import Candidates, _MeanColour, _OneColour
from brain2img.records import EmbeddingSpec
from brain2img.stages.build import build

COLOURS = torch.rand(5, 3, generator=torch.Generator().manual_seed(0))


def generators(rows=range(5)) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(10 + i) for i in rows]


def test_the_most_alike_of_the_candidates_is_shown():
    got = Candidates.tiny().reconstruct({"colour": COLOURS}, generators=generators())
    for row, generator in enumerate(generators()):
        drawn = torch.stack([torch.rand(3, 1, 1, generator=generator) for _ in range(4)]).flatten(1)
        seen = (drawn * 255).round() / 255
        best = F.cosine_similarity(seen, COLOURS[row : row + 1]).argmax()
        assert torch.equal(got[row, :, 0, 0], drawn[best])
    one = Candidates(start=_OneColour(), space=_MeanColour(), by="colour", n=2)
    alike = [F.cosine_similarity(part.reconstruct({"colour": COLOURS}, generators=generators()).mean((2, 3)), COLOURS)
             for part in (one, Candidates.tiny())]
    assert (alike[1] >= alike[0] - 1e-3).all(), "more candidates are never less alike"
    assert alike[1].mean() > alike[0].mean()


def test_a_picture_depends_on_its_row_alone():
    part = Candidates.tiny()
    together = part.reconstruct({"colour": COLOURS}, generators=generators())
    assert torch.equal(part.reconstruct({"colour": COLOURS[[3, 1]]}, generators=generators([3, 1])), together[[3, 1]])


def test_embeddings_of_another_backbone_are_refused():
    part = Candidates.tiny()
    part.check({"colour": EmbeddingSpec(name="colour", shape=(3,), uid="mean colour")})
    with pytest.raises(ValueError, match=r"expected embeddings of the backbone that judges .*, got uid other"):
        part.check({"colour": EmbeddingSpec(name="colour", shape=(3,), uid="other")})
    with pytest.raises(ValueError, match="expected 2 candidates or more, got 1"):
        Candidates(start=_OneColour(), space=_MeanColour(), n=1)


def test_yaml_makes_the_parts_and_they_are_part_of_the_identity():
    config = {"_target_": "brain2img.reconstructors.candidates.Candidates", "by": "clip", "n": 2,
              "start": {"_target_": "brain2img.reconstructors.retrieval.NearestTrainingImage", "space": "clip"},
              "space": {"_target_": "brain2img.spaces.open_clip.OpenCLIP", "model": "scenes_clip"}}
    part = build(config, Reconstructor)
    assert part.fits
    assert part.needs == ("clip",)
    assert part.uid() != Candidates.tiny().uid()
    part.check({"clip": EmbeddingSpec(name="clip", shape=(128,), uid=part.space.uid())})


def test_pictures_of_the_small_generator_come_nearer_to_what_was_decoded():
    """Of the library's own pipeline, judged by its own backbone."""
    from pathlib import Path

    from omegaconf import OmegaConf

    file = Path(__file__).parents[2] / "configs/reconstructor/candidates_small.yaml"
    config = OmegaConf.to_container(OmegaConf.load(file))["candidates"]
    part = build({**config, "n": 3}, Reconstructor)
    torch.manual_seed(0)
    embeddings = {"clip": torch.randn(2, part.start._configs["unet"]["encoder_hid_dim"])}
    draws = generators(range(2))
    each = torch.stack([part._embedded(part.start.reconstruct(embeddings, generators=draws)) for _ in range(3)])
    shown = part._embedded(part.reconstruct(embeddings, generators=generators(range(2))))
    best = F.cosine_similarity(each, embeddings["clip"][None], dim=-1).amax(0)
    torch.testing.assert_close(F.cosine_similarity(shown, embeddings["clip"], dim=-1), best, atol=1e-4, rtol=0)
