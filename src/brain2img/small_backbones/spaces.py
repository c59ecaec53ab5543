"""How the small backbones of the simulated study are trained: scenes_clip, scenes_dino and scenes_judge.

All are trained on scenes of the pool "backbone" alone, whose ids and concepts no test or validation stimulus shares.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as nnf
from safetensors.torch import save_file
from torch import Generator, Tensor, nn

from brain2img.artifacts import write_json
from brain2img.step_training import StepPlan, log_shares, train

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
CLIP: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 24, "head_width": 32},
    "text_cfg": {"context_length": 28, "vocab_size": 0, "width": 128, "heads": 4, "layers": 2,
                 "hf_tokenizer_name": "local", "no_causal_mask": True},
}
"""Architecture of scenes_clip, in open_clip's terms: a residual network. A transformer was tried first and named few
objects, but mostly on batches drawn at random: the two were not compared alike. The vocabulary is counted."""


def as_input(images: np.ndarray) -> Tensor:
    """Return ``(n, h, w, 3)`` uint8 pictures as ``(n, 3, h, w)`` float32, standardised by MEAN and STD."""
    x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def half(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights in half precision, contiguous, as they are stored."""
    return {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in weights.items()}


def write_tokenizer(folder: Path, *, captions: Sequence[str]) -> int:
    """Write a word-level tokenizer (transformers' ``tokenizer.json``) of all words of the captions.

    Sentences are wrapped in [BOS] and [EOS]; [EOS] has the highest number, which is how open_clip's text tower finds
    the end of a sentence.

    Parameters
    ----------
    folder
        Where it is written.
    captions
        Sentences that together hold every word.

    Returns
    -------
    int
        Size of the vocabulary.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    split = pre_tokenizers.Whitespace()
    words = sorted({word for text in captions for word, _ in split.pre_tokenize_str(text.lower())})
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[BOS]", *words, "[EOS]"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = split
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[(t, vocabulary[t]) for t in ("[BOS]", "[EOS]")])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", bos_token="[BOS]",
                            eos_token="[EOS]").save_pretrained(folder)
    return len(vocabulary)


def train_clip(*, images: np.ndarray, captions: Sequence[Sequence[str]], alike: Sequence[Sequence[str]],
               words: tuple[Sequence[str], Sequence[str]], plan: StepPlan, work: Path, out: Path) -> None:
    """Train scenes_clip contrastively and save it as open_clip's ``local-dir:`` folder.

    Three quarters of a batch are groups of scenes that are alike, because scenes drawn at random are told apart by
    their backgrounds, places and sizes: a model trained on such batches found 88 % of 500 captions of new concepts,
    but the right one of 48 that differ in the object for only 24 %. New concepts are pairs of colour and object that
    were never met. So in a quarter of the steps colours are exchanged in the pictures and hidden in the captions, in
    another objects are hidden in the captions: each is learnt without the other.

    Parameters
    ----------
    images
        ``(N, 64, 64, 3)`` uint8.
    captions
        N lists of paraphrases, the shortest last; each step takes one of each scene by chance.
    alike
        Groupings, each N names of groups; a step takes one by chance. Scenes of a group have much in common; where they
        share the colour, objects are learnt.
    words
        Names of colours and of objects, single words.
    plan
        Length and speed.
    work
        Holds the checkpoint.
    out
        Receives ``open_clip_config.json``, ``open_clip_model.safetensors`` (half precision) and the tokenizer.
    """
    import open_clip

    out.mkdir(parents=True, exist_ok=True)
    config = deepcopy(CLIP)
    config["text_cfg"]["vocab_size"] = write_tokenizer(out, captions=[text for texts in captions for text in texts])
    write_json(out / "open_clip_config.json",
               {"model_cfg": config, "preprocess_cfg": {"mean": MEAN, "std": STD, "interpolation": "bicubic"}})
    tokenize = open_clip.get_tokenizer(f"local-dir:{out}")
    tokens = torch.stack([tokenize([texts[i % len(texts)] for texts in captions]) for i in range(len(captions[0]))])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        model = open_clip.CLIP(**deepcopy(config))
    groupings = [_Groups(names, [texts[-1] for texts in captions]) for names in alike]
    spoken = tokenize.tokenizer
    colours, objects = (torch.isin(tokens, torch.tensor(spoken.convert_tokens_to_ids(list(names)))) for names in words)

    def loss(rows: np.ndarray, generator: Generator) -> dict[str, Tensor]:
        groups, hidden = (int(torch.randint(n, (), generator=generator)) for n in (len(groupings), 4))
        rows = groupings[groups].fill(rows, generator)
        places = torch.from_numpy(rows)
        form = torch.randint(len(tokens) + 1, (len(rows),), generator=generator).clamp(max=len(tokens) - 1)
        seen, read = as_input(images[rows]), tokens[form, places]
        if hidden == 0:
            seen = recolour(seen, torch.ones(len(rows), dtype=torch.bool), generator)
        if hidden < 2:
            read = read.masked_fill((colours, objects)[hidden][form, places], spoken.unk_token_id)
        image, text, scale = model(jitter(seen, generator), read)
        # what is hidden makes captions equal: all scenes of a caption are right
        right = (read[:, None] == read).all(-1).float()
        right, logits = right / right.sum(1, keepdim=True), scale * image @ text.T
        return {"clip": (nnf.cross_entropy(logits, right) + nnf.cross_entropy(logits.T, right)) / 2}

    train(model, loss, n_items=len(images), plan=plan, folder=work, description="scenes_clip")
    save_file(half(model.state_dict()), out / "open_clip_model.safetensors")


class _Groups:
    """Draws items that are alike, no two with the same caption."""

    def __init__(self, names: Sequence[str], captions: Sequence[str]) -> None:
        self.names, self.captions = list(names), list(captions)
        self.members: dict[str, list[int]] = {}
        for i, name in enumerate(self.names):
            self.members.setdefault(name, []).append(i)

    def fill(self, rows: np.ndarray, generator: Generator, *, size: int = 16, share: float = 0.75) -> np.ndarray:
        """Return as many items, of which the first few of `rows` are kept and a `share` are groups of `size`."""
        n_groups = int(len(rows) * share) // size
        parts = [rows[:len(rows) - n_groups * size]]
        for row in rows[len(rows) - n_groups:]:
            mine = self.members[self.names[row]]
            chosen = {self.captions[row]: int(row)}
            for place in torch.randperm(len(mine), generator=generator).tolist():
                if len(chosen) == size:
                    break
                chosen.setdefault(self.captions[mine[place]], mine[place])
            parts.append(np.array(list(chosen.values())))
        return np.concatenate(parts)


def jitter(x: Tensor, generator: Generator, *, pixels: int = 2, noise: float = 0.1) -> Tensor:
    """Shift each picture ``(B, 3, h, w)`` by up to `pixels`, edges repeated, and add Gaussian noise (in STDs)."""
    padded = nnf.pad(x, [pixels] * 4, mode="replicate")
    shift = torch.randint(2 * pixels + 1, (len(x), 2), generator=generator).tolist()
    h, w = x.shape[-2:]
    moved = torch.stack([image[:, dy:dy + h, dx:dx + w] for image, (dy, dx) in zip(padded, shift, strict=True)])
    return moved + noise * torch.randn(x.shape, generator=generator)


def _save_timm(model: Any, *, architecture: str, args: dict[str, Any], labels: Sequence[str], out: Path) -> None:
    """Save a timm model in timm's own format, half precision."""
    from timm.models import save_for_hf

    data = {"mean": MEAN, "std": STD, "crop_pct": 1.0, "interpolation": "bicubic", "input_size": [3, 64, 64]}
    model.pretrained_cfg = {**model.pretrained_cfg, **data, "architecture": architecture, "label_names": list(labels)}
    save_for_hf(model.half(), str(out), model_args=args, safe_serialization=True,
                model_config={**data, "architecture": architecture, "label_names": list(labels),
                              "num_classes": args["num_classes"]})


JUDGE: dict[str, Any] = {"channels": [32, 64, 128, 192], "num_classes": 0}
"""Architecture of scenes_judge: a residual network, timm's "resnet10t", with these widths."""
OF_SHAPE = ("kind", "category", "second_kind")


def train_judge(*, images: np.ndarray, attributes: np.ndarray, labels: Sequence[str], plan: StepPlan, work: Path,
                out: Path) -> None:
    """Train scenes_judge to name the attributes of a scene, and save it in timm's format.

    Each kind has only five of the ten colours in training, and a network that guesses the kind from the colour, or the
    colour from the kind, is wrong on every new concept. So kinds are learnt from pictures whose colours are exchanged
    at random; and while colours are learnt, how frequent each is among pictures of the kind is added to what the
    network says, so that it gains nothing by guessing from the kind (logit adjustment, Menon et al. 2021,
    https://arxiv.org/abs/2007.07314).

    Parameters
    ----------
    images
        ``(N, 64, 64, 3)`` uint8.
    attributes
        ``(N, n_labels)``, as `spaces.attributes.Attributes` gives them.
    labels
        Names of the dimensions: "kind=apple" of a categorical attribute, "x" of a number.
    plan
        Length and speed.
    work
        Holds the checkpoint.
    out
        Receives ``config.json`` (with the labels) and ``model.safetensors`` (half precision).
    """
    import timm

    args = {**JUDGE, "num_classes": len(labels)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        model = timm.create_model("resnet10t", **args)
    fields: dict[str, list[int]] = {}
    for i, label in enumerate(labels):
        fields.setdefault(label.partition("=")[0], []).append(i)
    truth = torch.from_numpy(np.asarray(attributes, dtype=np.float32))
    known = log_shares(truth[:, fields["kind"]], truth[:, fields["colour"]])

    def loss(rows: np.ndarray, generator: Generator) -> dict[str, Tensor]:
        recoloured = torch.rand(len(rows), generator=generator) < 0.45
        x = blur(jitter(recolour(as_input(images[rows]), recoloured, generator), generator), generator, most=3,
                 chosen=torch.rand(len(rows), generator=generator) < 0.5)
        y, target = model(x), truth[torch.from_numpy(rows)]
        terms = {}
        for name, places in fields.items():
            of = recoloured if name in OF_SHAPE else ~recoloured
            if not of.any():
                continue
            said, right = y[of][:, places], target[of][:, places]
            if name == "colour":
                said = said + known[target[of][:, fields["kind"]].argmax(1)]
            if labels[places[0]] == name:
                terms[name] = nnf.mse_loss(said, right)
            else:
                terms[name] = nnf.cross_entropy(said, right.argmax(1), label_smoothing=0.05)
        return {name: (1.0 if name in OF_SHAPE or "colour" in name else 0.2) * value for name, value in terms.items()}

    train(model, loss, n_items=len(images), plan=plan, folder=work, description="scenes_judge")
    _save_timm(model, architecture="resnet10t", args=args, labels=labels, out=out)


def recolour(x: Tensor, chosen: Tensor, generator: Generator) -> Tensor:
    """Exchange the colour channels of the `chosen` ``(B,)`` pictures ``(B, 3, h, w)``, and scale each by 0.5 to 1.5."""
    order = torch.rand(len(x), 3, generator=generator).argsort(dim=1)[..., None, None]
    gain = 0.5 + torch.rand(len(x), 3, 1, 1, generator=generator)
    sign = torch.where(torch.rand(len(x), 3, 1, 1, generator=generator) < 0.25, -1.0, 1.0)
    return torch.where(chosen[:, None, None, None], x.gather(1, order.expand_as(x)) * gain * sign, x)


def blur(x: Tensor, generator: Generator, *, most: float, chosen: Tensor) -> Tensor:
    """Make the `chosen` ``(B,)`` pictures ``(B, 3, h, w)`` coarser by one random factor, as reconstructions are."""
    factor = 1 + (most - 1) * float(torch.rand((), generator=generator))
    small = nnf.interpolate(x, scale_factor=1 / factor, mode="bilinear", antialias=True, align_corners=False)
    coarse = nnf.interpolate(small, size=x.shape[-2:], mode="bilinear", align_corners=False)
    return torch.where(chosen[:, None, None, None], coarse, x)


DINO: dict[str, Any] = {"img_size": 64, "patch_size": 8, "embed_dim": 64, "depth": 3, "num_heads": 4, "num_classes": 0}
"""Architecture of scenes_dino: timm's vision transformer, in a small size."""


class _SelfDistillation(nn.Module):
    """DINO (https://arxiv.org/abs/2104.14294) with the masked-patch loss of iBOT (https://arxiv.org/abs/2111.07832).

    The teacher is an exponential average of the student; its outputs are centred and sharpened. As in DINOv2
    (https://arxiv.org/abs/2304.07193) class tokens of different crops are matched, and masked patches of the student to
    the teacher's patches of the same crop. Smaller than published: two crops, no local crops, one head for both.
    """

    def __init__(self, *, prototypes: int = 512, momentum: float = 0.99) -> None:
        import timm

        super().__init__()
        self.momentum = momentum
        width = DINO["embed_dim"]
        self.student: Any = timm.create_model("vit_tiny_patch16_224", **DINO)
        self.head = nn.Sequential(nn.Linear(width, 256), nn.GELU(), nn.Linear(256, 64))
        self.prototypes = nn.Linear(64, prototypes, bias=False)
        self.mask = nn.Parameter(torch.zeros(width))
        self.teacher: Any = deepcopy(self.student)
        self.teacher_head = deepcopy(self.head)
        for part in (self.teacher, self.teacher_head):
            part.requires_grad_(False)
        self.centre: Tensor
        self.register_buffer("centre", torch.zeros(2, prototypes))

    def project(self, head: nn.Module, tokens: Tensor) -> Tensor:
        """Return the similarity of tokens ``(..., D)`` to the prototypes."""
        return nnf.linear(nnf.normalize(head(tokens), dim=-1), nnf.normalize(self.prototypes.weight, dim=-1))

    def tokens(self, x: Tensor, masked: Tensor) -> Tensor:
        """Return the student's tokens ``(B, 1 + L, D)``, patches under `masked` ``(B, L)`` hidden from it."""
        vit = self.student
        patches = torch.where(masked[..., None], self.mask, vit.patch_embed(x))
        return vit.norm(vit.blocks(vit.norm_pre(vit._pos_embed(patches))))

    def forward(self, crops: tuple[Tensor, Tensor], generator: Generator) -> dict[str, Tensor]:
        x = torch.cat(crops)
        n_patches = self.student.patch_embed.num_patches
        # half of the crops are masked, by 10 to 50 %
        share = (0.1 + 0.4 * torch.rand(len(x), 1, generator=generator)) * (
            torch.rand(len(x), 1, generator=generator) < 0.5)
        masked = torch.rand(len(x), n_patches, generator=generator) < share
        with torch.no_grad():
            self._follow()
            seen = self.project(self.teacher_head, self.teacher.forward_features(x))
            target = torch.cat([((seen[:, :1] - self.centre[0]) / 0.05), ((seen[:, 1:] - self.centre[1]) / 0.05)], 1)
            target = target.softmax(-1)
            self.centre.lerp_(torch.stack([seen[:, 0].mean(0), seen[:, 1:].mean((0, 1))]), 0.1)
        guess = (self.project(self.head, self.tokens(x, masked)) / 0.1).log_softmax(-1)
        crossed = torch.cat([target[len(target) // 2:, 0], target[:len(target) // 2, 0]])
        patches = -(target[:, 1:] * guess[:, 1:]).sum(-1)[masked]
        spread = nnf.normalize(guess[:, 0].exp().mean(0), p=1, dim=0)
        return {"class": -(crossed * guess[:, 0]).sum(-1).mean(),
                "patches": patches.mean() if len(patches) else patches.sum(),
                "entropy": 0.5 * (spread * (spread + 1e-8).log()).sum() + 0.5 * float(np.log(len(spread)))}

    @torch.no_grad()
    def _follow(self) -> None:
        if not self.training:
            return
        for mine, student in ((self.teacher, self.student), (self.teacher_head, self.head)):
            for a, b in zip(mine.parameters(), student.parameters(), strict=True):
                a.lerp_(b, 1 - self.momentum)


def train_dino(*, images: np.ndarray, plan: StepPlan, work: Path, out: Path) -> None:
    """Train scenes_dino without labels and save its teacher in timm's format.

    Parameters
    ----------
    images
        ``(N, 64, 64, 3)`` uint8.
    plan
        Length and speed.
    work
        Holds the checkpoint.
    out
        Receives ``config.json`` and ``model.safetensors`` (half precision).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        model = _SelfDistillation()

    def loss(rows: np.ndarray, generator: Generator) -> dict[str, Tensor]:
        x = as_input(images[rows])
        return model((crop(x, generator), crop(x, generator)), generator)

    train(model, loss, n_items=len(images), plan=plan, folder=work, description="scenes_dino")
    _save_timm(model.teacher, architecture="vit_tiny_patch16_224", args=DINO, labels=(), out=out)


def crop(x: Tensor, generator: Generator, *, smallest: float = 0.6) -> Tensor:
    """Return a random square part of each picture ``(B, 3, h, w)``, at least `smallest` wide, at full size again."""
    scale = smallest + (1 - smallest) * torch.rand(len(x), generator=generator)
    shift = (1 - scale)[:, None] * (2 * torch.rand(len(x), 2, generator=generator) - 1)
    theta = torch.zeros(len(x), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    theta[:, :, 2] = shift
    grid = nnf.affine_grid(theta, list(x.shape), align_corners=False)
    gain = 1 + 0.2 * (torch.rand(len(x), 1, 1, 1, generator=generator) - 0.5)
    return nnf.grid_sample(x, grid, align_corners=False, padding_mode="border") * gain
