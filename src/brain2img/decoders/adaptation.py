"""A trained deep decoder for a new subject: which weights it takes over, and which are trained."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from brain2img.decoders.deep import DeepDecoder
from brain2img.layers import check_weights

log = logging.getLogger(__name__)

MODES = ("reset", "adapter", "full")
FROZEN = ("eval", "train")


def own_names(decoder: DeepDecoder, subject: str) -> list[str]:
    """Return the names of the weights that belong to this subject alone."""
    own = {id(p) for p in decoder.module.adapter.parameters_of(subject)}
    return [name for name, p in decoder.module.named_parameters() if id(p) in own]


def take_over(decoder: DeepDecoder, weights: Mapping[str, Tensor], *, subject: str, known: Sequence[str],
              what: str) -> dict[str, list[str]]:
    """Give an untrained decoder of one new subject what a trained one shares between subjects.

    Parameters
    ----------
    decoder
        Built for `subject` alone; its parts for this subject stay as they are, fresh, unless its adapter knows better
        (``start_from_shared``: what served unseen subjects).
    weights
        Name -> weight of the trained decoder.
    subject
        The new subject.
    known
        Subjects of the trained decoder, whose own parts are left out.
    what
        What messages call the trained decoder.

    Returns
    -------
    dict
        "fresh", "taken_over" (names here) and "left_out" (names there).

    Raises
    ------
    ValueError
        If a shared weight is missing or of another shape, or a weight is neither shared nor a known subject's own.
    """
    fresh = own_names(decoder, subject)
    shared = {k: v for k, v in decoder.module.state_dict().items() if k not in fresh}
    others = {_renamed(name, subject, other) for name in fresh for other in known}
    got = {k: v for k, v in weights.items() if k not in others}
    check_weights(shared, got, what=what,
                  cure="Adapt with the encoder, heads and spaces that the run was trained with.")
    decoder.module.load_state_dict({**decoder.module.state_dict(), **got})
    decoder.module.adapter.start_from_shared(subject)
    decoder.observes = False  # statistics of true embeddings are taken over, too: the joint prior's weights fit those
    return {"fresh": fresh, "taken_over": sorted(got), "left_out": sorted(others & set(weights))}


def _renamed(name: str, subject: str, other: str) -> str:
    """Return what a weight of `subject` is called for another one."""
    return f".{name}.".replace(f".{subject}.", f".{other}.")[1:-1]


def restrict(decoder: DeepDecoder, *, subject: str, mode: str, frozen: str = "eval") -> dict[str, list[str]]:
    """Leave only the weights that `mode` trains to the optimizer, and say which.

    "reset": the new subject's own parts, fresh; all that is shared stays (reset-tuning of MindBridge, Wang et al., CVPR
    2024, as its code does since July 2024: https://github.com/littlepure2333/MindBridge). "adapter": the same parts
    (the adapter-only transfer of STTM, arXiv:2403.06361, whose GOD version leaves input projection and input residual
    block trainable); the stage gives it no trials of known subjects. "full": everything, as MindBridge's code did
    before July 2024 with its subjects' parts fresh, too.

    Parameters
    ----------
    decoder
        After `take_over`.
    subject
        The new subject.
    mode
        "reset", "adapter" or "full".
    frozen
        "eval" (the default here: frozen parts are a fixed function) or "train" (as released: their dropout stays on).

    Returns
    -------
    dict
        "trained" and "frozen" names of parameters.

    Raises
    ------
    ValueError
        If `mode` or `frozen` is none of these, or nothing would be trained.
    """
    for name, got, choices in (("mode", mode, MODES), ("frozen", frozen, FROZEN)):
        if got not in choices:
            raise ValueError(f"adapt, {name}: expected one of {choices}, got {got!r}. Set {name}= to one of these.")
    own = set(own_names(decoder, subject))
    for name, parameter in decoder.module.named_parameters():
        # what is never trained (frequencies in MindEye's prior) is not trained here either
        parameter.requires_grad_(parameter.requires_grad and (mode == "full" or name in own))
    named = list(decoder.module.named_parameters())
    if not any(p.requires_grad for _, p in named):
        raise ValueError(f"adapt, mode={mode}: expected parts of subject {subject!r} alone to train, got none: "
                         f"{type(decoder.module.adapter).__name__} shares everything between subjects. Set mode=full.")
    decoder.module.train()
    if frozen == "eval":
        _settle(decoder.module)
        for _, _, loss in decoder.module.named_losses():
            loss.training = True  # a frozen prior's loss draws new noise in every step, as in any training
    return {"trained": [n for n, p in named if p.requires_grad], "frozen": [n for n, p in named if not p.requires_grad]}


def _settle(module: nn.Module) -> None:
    """Put every part of which no weight is trained into evaluation mode, with all that is in it."""
    for child in module.children():
        weights = list(child.parameters())
        if weights and not any(p.requires_grad for p in weights):
            child.eval()
        else:
            _settle(child)


def beside(decoder: DeepDecoder, known: DeepDecoder, *, frozen: str = "eval") -> None:
    """Let `decoder` train on batches with `sources`, which the adapter of a trained decoder embeds.

    That adapter is not trained and stands in no checkpoint. Upstream leaves its dropout on (``frozen="train"``).
    """
    adapter = known.module.adapter.requires_grad_(False)
    adapter.train(frozen == "train")
    decoder.module.known_adapters = [adapter]


def count(decoder: DeepDecoder, names: Sequence[str]) -> int:
    """Return how many values the named parameters hold."""
    chosen = set(names)
    return sum(p.numel() for name, p in decoder.module.named_parameters() if name in chosen)
