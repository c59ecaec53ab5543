"""MindEye's diffusion prior: equality of its network and its loss with plain evaluations, published sizes."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from brain2img.priors.diffusion import DiffusionPrior
from brain2img.priors.mindeye import MindEyeTransformer, RelativeBias

PUBLISHED = {"prediction": "sample", "condition_dropout": 0.2, "noising": {"n_times": 100, "betas": "cosine"},
             "scale": "sqrt_width", "sampler": "ddpm", "n_steps": 100, "training": {"steps": 10, "batch_size": 8,
                                                                                   "lr": 1e-3}}
SMALL = partial(MindEyeTransformer, depth=2, heads=3, head_width=6)


@pytest.mark.parametrize(("shape", "heads", "head_width", "published"), [
    ((257, 768), 12, 64, 56_055_184), ((256, 1664), 32, 52, 259_865_216)])
def test_the_network_has_the_published_size(shape, heads, head_width, published):
    with torch.device("meta"):
        made = MindEyeTransformer(shape=shape, heads=heads, head_width=head_width)
    assert sum(p.numel() for p in made.parameters()) == published
    assert sum(p.numel() for p in made.parameters() if not p.requires_grad) == 16


def plain_norm(row, gain):
    return (row - row.mean()) / math.sqrt(row.var() + 1e-5) * gain


def silu(x):
    return x / (1 + np.exp(-x))


def plain_bucket(distance):
    """T5's: 16 distances of their own, then 16 logarithmic ones up to 128; keys after the query count as distance 0."""
    n = max(distance, 0)
    return n if n < 16 else min(31, 16 + int(math.log(n / 16) / math.log(128 / 16) * 16))


def plain_rotation(vector, position):
    out = vector.copy()
    n = min(32, len(vector))
    for pair in range(n // 2):
        angle = position / 10000 ** (2 * pair / n)
        a, b = vector[2 * pair], vector[2 * pair + 1]
        out[2 * pair:2 * pair + 2] = [a * math.cos(angle) - b * math.sin(angle),
                                      b * math.cos(angle) + a * math.sin(angle)]
    return out


def plain_attention(x, w, prefix, heads):
    """One token, one head, one key at a time."""
    normed = np.stack([plain_norm(row, w[f"{prefix}.norm.g"]) for row in x])
    queries = (normed @ w[f"{prefix}.to_q.weight"].T).reshape(len(x), heads, -1)
    keys, values = np.split(normed @ w[f"{prefix}.to_kv.weight"].T, 2, axis=1)
    keys = [w[f"{prefix}.null_kv"][0]] + [plain_rotation(k, i) for i, k in enumerate(keys)]
    values = [w[f"{prefix}.null_kv"][1], *values]
    table = w["causal_transformer.rel_pos_bias.relative_attention_bias.weight"]
    out = np.zeros((len(x), heads, queries.shape[2]))
    for i in range(len(x)):
        for h in range(heads):
            q = plain_rotation(queries[i, h], i)
            score = np.array([16 * (q @ k) / np.linalg.norm(q) / np.linalg.norm(k) + table[plain_bucket(i - j), h]
                              for j, k in enumerate(keys)])
            share = np.exp(score - score.max())
            out[i, h] = sum(s * v for s, v in zip(share / share.sum(), values, strict=True))
    out = out.reshape(len(x), -1) @ w[f"{prefix}.to_out.0.weight"].T
    return np.stack([plain_norm(row, w[f"{prefix}.to_out.1.g"]) for row in out])


def plain_network(x, t, condition, w, *, depth, heads):
    width = x.shape[1]
    rates = np.exp(-math.log(10000) * np.arange(width // 2) / (width // 2 - 1))
    time = np.concatenate([np.sin(t * rates), np.cos(t * rates)])
    for i in (0, 2, 4):
        time = time @ w[f"to_time_embeds.net.{i}.weight"].T + w[f"to_time_embeds.net.{i}.bias"]
        time = silu(time) if i < 4 else time
    tokens = np.concatenate([condition, time[None], x + w["learned_query"]])
    for i in range(depth):
        prefix = f"causal_transformer.layers.{i}"
        tokens = tokens + plain_attention(tokens, w, f"{prefix}.0", heads)
        normed = np.stack([plain_norm(row, w[f"{prefix}.1.0.g"]) for row in tokens])
        value, gate = np.split(normed @ w[f"{prefix}.1.1.weight"].T, 2, axis=1)
        tokens = tokens + (value * silu(gate)) @ w[f"{prefix}.1.5.weight"].T
    out = np.stack([plain_norm(row / row.max(), w["causal_transformer.norm.g"]) for row in tokens])
    return (out @ w["causal_transformer.project_out.weight"].T)[-len(x):]


@pytest.mark.parametrize("head_width", [6, 34])  # all values rotated, and the first 32
def test_the_network_equals_a_plain_evaluation(head_width):
    torch.manual_seed(0)
    network = MindEyeTransformer(shape=(9, 8), depth=2, heads=3, head_width=head_width).eval()
    for p in network.parameters():
        if p.requires_grad:
            p.data += 0.2 * torch.randn_like(p)
    w = {k: v.double().numpy() for k, v in network.state_dict().items()}
    x, condition, t = torch.randn(3, 9, 8), torch.randn(3, 9, 8), torch.tensor([0, 41, 99])
    keep = torch.tensor([[1.0], [1.0], [0.0]])
    out = network(x, t, condition, keep).detach().numpy()
    for i in range(3):
        given = condition[i].double().numpy() if keep[i] else w["null_brain_embeds"]
        expected = plain_network(x[i].double().numpy(), t[i].item(), given, w, depth=2, heads=3)
        np.testing.assert_allclose(out[i], expected, atol=1e-5 * max(1, np.abs(expected).max()))


def test_distances_share_biases_as_in_t5():
    buckets = RelativeBias.buckets(515, 516)
    for i, j in ((0, 0), (3, 9), (20, 5), (40, 13), (300, 290), (300, 201), (300, 171), (514, 0)):
        assert buckets[i, j] == plain_bucket(i - j), (i, j)


def test_the_loss_is_the_error_of_the_embedding_scaled_by_the_square_root_of_its_width():
    prior = DiffusionPrior(network=partial(SMALL, input_dropout=0.0), **PUBLISHED)
    prior.start((5, 8))
    generator = torch.Generator().manual_seed(0)
    context, target = torch.randn(16, 5, 8), torch.randn(16, 5, 8) / 3
    value = prior.training_loss(context, target, generator=torch.Generator().manual_seed(1)).item()
    # the same draws, and the cosine schedule of Nichol and Dhariwal 2021 with s = 0.008
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(16, 5, 8, generator=generator)
    t = torch.randint(0, 100, (16,), generator=generator)
    keep = (torch.rand(16, 1, generator=generator) >= 0.2).float()

    def level(step):
        return math.cos((step / 100 + 0.008) / 1.008 * math.pi / 2) ** 2

    kept = np.cumprod([1 - min(1 - level(i + 1) / level(i), 0.999) for i in range(100)])
    kept = torch.tensor(kept[t.numpy()], dtype=torch.float32)[:, None, None]
    clean = target * math.sqrt(8)
    noisy = kept.sqrt() * clean + (1 - kept).sqrt() * noise
    out = prior.model.network(noisy, t, context, keep)
    assert value == pytest.approx(((out - clean) ** 2).mean().item(), rel=1e-5)


def test_noisy_tokens_are_dropped_in_training_alone():
    network = MindEyeTransformer(shape=(8,), depth=1, heads=2, head_width=4, input_dropout=0.3)
    condition, t, keep = torch.randn(1, 8).expand(2000, 8), torch.zeros(2000), torch.ones(2000, 1)
    x = torch.randn(2000, 8)
    network.null_image_embed.data[:] = 7
    torch.manual_seed(0)
    with torch.no_grad():
        dropped = network(torch.full_like(x, 7.0), t, condition, keep)[0]
        same = (network(x, t, condition, keep) - dropped).abs().amax(dim=1) < 1e-5
        assert 0.25 < same.float().mean() < 0.35
        network.eval()
        assert not ((network(x, t, condition, keep) - dropped).abs().amax(dim=1) < 1e-5).any()


def test_with_the_exact_network_of_a_gaussian_samples_have_its_mean_and_spread():
    prior = DiffusionPrior(network=SMALL, **PUBLISHED)
    model = prior.start((24,))
    assert model.std_out[0] == pytest.approx(1 / math.sqrt(24))

    class Exact(torch.nn.Module):
        def forward(self, x, t, condition, keep):
            kept = prior._noising.alphas_cumprod[t][:, None]
            return 2 + kept.sqrt() * (x - 2 * kept.sqrt())  # E[x0 | x] of a normal distribution around 2

    model.network = Exact()
    out = prior.sample(np.zeros((300, 24), dtype=np.float32),
                       generators=[torch.Generator().manual_seed(i) for i in range(300)]) * math.sqrt(24)
    assert out.mean() == pytest.approx(2, abs=0.05)  # five standard errors of 7,200 draws are 0.06 and 0.04
    assert out.std() == pytest.approx(1, abs=0.04)


def test_samples_do_not_depend_on_what_is_sampled_with_them():
    prior = DiffusionPrior(network=SMALL, **{**PUBLISHED, "n_steps": 20})
    prior.start((4, 8))
    given = np.random.default_rng(0).standard_normal((6, 4, 8)).astype(np.float32)
    whole = prior.sample(given, generators=[torch.Generator().manual_seed(i) for i in range(6)])
    part = prior.sample(given[2:4], generators=[torch.Generator().manual_seed(i) for i in (2, 3)])
    np.testing.assert_allclose(part, whole[2:4], atol=1e-5)
    assert not np.allclose(prior.sample(given[2:4], generators=[torch.Generator().manual_seed(9) for _ in range(2)]),
                           part, atol=0.01)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="expected embeddings"):
        MindEyeTransformer(shape=(4, 16, 16, 3))
    for change, message in (({"scale": "unit"}, "expected scale of"), ({"n_steps": 101}, "1 to n_times steps"),
                            ({"noising": {"betas": "square"}}, "expected noising.betas of"),
                            ({"noising": {"steps": 5}}, "expected n_times and betas in noising")):
        with pytest.raises(ValueError, match=message):
            DiffusionPrior(network=SMALL, **{**PUBLISHED, **change})
