"""How scenes_captioner is trained: a prefix projection and a small language model, together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn

from brain2img.artifacts import write_json, writing
from brain2img.captioners.prefix import SIZES, WEIGHTS, PrefixProjection
from brain2img.pretrained import write_condition
from brain2img.pretrained.loading import without_bars
from brain2img.records import EmbeddingSpec
from brain2img.step_training import StepPlan, log_shares, train

LANGUAGE: dict[str, Any] = {"n_layer": 4, "n_head": 4, "n_embd": 128, "n_positions": 64}
"""Architecture of the language model, transformers' `GPT2Config`: 0.8 million weights; the projection has 0.6."""
N_PREFIX = 8
NOISE = 0.5
"""Largest standard deviation of the noise on an embedding, in standard deviations of its dimension."""
WORD_DROPOUT = 0.3
"""Share of the words that the model does not see of the caption so far."""
SHARD = "7MB"


class _Captioner(nn.Module):
    """Projection and language model, and the loss of captions given embeddings."""

    after: Tensor
    before: Tensor

    def __init__(self, *, embeddings: Tensor, tokenizer: Any, shares: tuple[Tensor, Tensor]) -> None:
        from transformers import GPT2Config, GPT2LMHeadModel

        super().__init__()
        self.unknown, self.padding = int(tokenizer.unk_token_id), int(tokenizer.pad_token_id)
        self.prefix = PrefixProjection(width=embeddings.shape[1], n_prefix=N_PREFIX, hidden=LANGUAGE["n_embd"])
        self.prefix.mean.copy_(embeddings.mean(dim=0))
        self.prefix.std.copy_(embeddings.std(dim=0).clamp_min(1e-4))
        self.language = GPT2LMHeadModel(GPT2Config(
            vocab_size=len(tokenizer), bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=self.padding, **LANGUAGE))
        for name, table in zip(("after", "before"), shares, strict=True):
            self.register_buffer(name, table, persistent=False)

    def forward(self, embeddings: Tensor, tokens: Tensor, generator: Generator) -> Tensor:
        """Return the mean cross-entropy of `tokens` ``(B, L)`` after `embeddings` ``(B, D)``."""
        # decoded embeddings are noisy, some more than others
        level = NOISE * torch.rand(len(embeddings), 1, generator=generator)
        noisy = embeddings + level * self.prefix.std * torch.randn(embeddings.shape, generator=generator)
        # a test caption pairs words that no training caption does: where words are missing, the model learns to ask the
        # embedding and not the word before (Bowman et al. 2016, https://arxiv.org/abs/1511.06349)
        dropped = torch.rand(tokens.shape, generator=generator) < WORD_DROPOUT
        words = self.language.get_input_embeddings()(tokens.masked_fill(dropped, self.unknown))
        logits = self.language(inputs_embeds=torch.cat([self.prefix(noisy), words], dim=1)).logits[:, N_PREFIX - 1:-1]
        # nothing is to be gained from guessing a noun from its adjective, or the other way round
        logits = logits + nn.functional.pad(self.after[tokens[:, :-1]], (0, 0, 1, 0))
        logits = logits + nn.functional.pad(self.before[tokens[:, 1:]], (0, 0, 0, 1))
        return nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten(), ignore_index=self.padding)


def _pair_shares(tokens: Tensor, first: Tensor, second: Tensor, *, n_words: int) -> tuple[Tensor, Tensor]:
    """Return what is added to logits ``(n_words,)`` after each word and before each word, ``(n_words, n_words)``.

    That are logarithms of how often each of the words `second` follows one of `first` in `tokens` ``(N, L)``, and of
    how often each of the words `first` precedes one of `second`; 0 for all other words.
    """
    pairs = torch.stack([tokens[:, :-1].flatten(), tokens[:, 1:].flatten()])
    pairs = pairs[:, torch.isin(pairs[0], first) & torch.isin(pairs[1], second)]
    one, two = ((row[:, None] == words).float() for row, words in zip(pairs, (first, second), strict=True))
    after, before = torch.zeros(2, n_words, n_words)
    after[first[:, None], second] = log_shares(one, two)
    before[second[:, None], first] = log_shares(two, one)
    return after, before


def train_captioner(*, embeddings: np.ndarray, captions: Sequence[Sequence[str]],
                    pairs: tuple[Sequence[str], Sequence[str]], tokenizer_folder: Path, condition_spec: EmbeddingSpec,
                    plan: StepPlan, work: Path, out: Path) -> None:
    """Train scenes_captioner and save it as `PrefixLanguageModel` reads it.

    Parameters
    ----------
    embeddings
        ``(N, D)`` of the scenes.
    captions
        N lists of paraphrases, of which the first is learnt: it names every attribute.
    pairs
        Adjectives and nouns, single words; none to leave this out. What is known of a new concept is that it is a pair
        never met, so while they are learnt the frequencies of the pairs are added to what the model says
        (`brain2img.step_training.log_shares`).
    tokenizer_folder
        Holds a tokenizer of transformers with [PAD], [UNK], [BOS] and [EOS], e.g. the one of scenes_clip.
    condition_spec
        The space of the embeddings.
    plan
        Length and speed.
    work
        Holds the checkpoint; an interrupted training goes on from there.
    out
        Receives the language model, the tokenizer and the projection, in half precision.

    Raises
    ------
    ValueError
        If a caption has a word that the tokenizer does not know, or is too long for the model.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, local_files_only=True, trust_remote_code=False)
    tokens = _tokens([texts[0] for texts in captions], tokenizer)
    known = torch.from_numpy(np.asarray(embeddings, dtype=np.float32))
    first, second = (torch.tensor(tokenizer.convert_tokens_to_ids(list(words)), dtype=torch.long) for words in pairs)
    shares = _pair_shares(tokens, first, second, n_words=len(tokenizer))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        model = _Captioner(embeddings=known, tokenizer=tokenizer, shares=shares)

    def loss(rows: np.ndarray, generator: Generator) -> dict[str, Tensor]:
        return {"words": model(known[rows], tokens[rows], generator)}

    train(model, loss, n_items=len(known), plan=plan, folder=work, description="scenes_captioner")
    _save(model, tokenizer=tokenizer, out=out)
    write_condition(out, condition=condition_spec)


def _tokens(texts: Sequence[str], tokenizer: Any) -> Tensor:
    """Return ``(N, L)`` token numbers of captions, each with its end and then padded."""
    end, padding, unknown = (int(getattr(tokenizer, f"{name}_token_id")) for name in ("eos", "pad", "unk"))
    lines = [[*tokenizer(text, add_special_tokens=False)["input_ids"], end] for text in texts]
    strange = [text for text, line in zip(texts, lines, strict=True) if unknown in line]
    if strange:
        raise ValueError(f"captions: expected words that the tokenizer knows, got others in {len(strange)} of them "
                         f"({strange[0]!r}). Make the tokenizer from captions that together hold every word.")
    longest, limit = max(map(len, lines)), LANGUAGE["n_positions"] - N_PREFIX
    if longest > limit:
        raise ValueError(f"captions: expected at most {limit} tokens, got {longest}. Raise n_positions of the language "
                         "model.")
    return torch.tensor([line + [padding] * (longest - len(line)) for line in lines])


def _save(model: _Captioner, *, tokenizer: Any, out: Path) -> None:
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    model.half()
    with without_bars():
        model.language.save_pretrained(out, max_shard_size=SHARD)
    tokenizer.save_pretrained(out)
    with writing(out / WEIGHTS) as temporary:
        save_file({name: value.contiguous() for name, value in model.prefix.state_dict().items()}, temporary)
    write_json(out / SIZES, model.prefix.sizes)
