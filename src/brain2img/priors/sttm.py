"""The network of the diffusion prior of See Through Their Minds: brain tokens as memory of a transformer decoder."""

from __future__ import annotations

import torch
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import Tensor, nn

from brain2img.priors.networks import PriorNetwork


class STTMTransformer(PriorNetwork):
    """Noisy image tokens attend to themselves and to the decoded tokens, of which training hides more than half.

    See Through Their Minds (STTM; arXiv:2403.06361, https://github.com/YulongBonjour/STTM): torch's TransformerDecoder,
    6 layers, 12 heads, width 768, feed-forward 3072, GELU, learned positions for image and for brain tokens; 60 to 65 %
    of the 257 brain tokens are masked in training. Our notes do not say the rest; here one share is drawn a batch and
    hides other tokens in every row (none attends to them), the time step is a token before the noisy ones, dropped
    conditions become learned null tokens (as in MindEye), normalisation comes first and there is no dropout.

    Parameters
    ----------
    shape
        ``(L, D)`` of the embeddings; ``(D,)`` is one token, which is never hidden.
    depth, heads, feedforward
        Of the transformer, whose width is D; the last is a factor on D.
    masked
        Smallest and largest share of the brain tokens that are hidden in training.

    Raises
    ------
    ValueError
        If the embeddings are neither tokens nor vectors, their width is no multiple of `heads`, or `masked` are no
        shares below 1.
    """

    def __init__(self, *, shape: tuple[int, ...], depth: int = 6, heads: int = 12, feedforward: int = 4,
                 masked: tuple[float, float] = (0.6, 0.65)) -> None:
        super().__init__()
        if len(shape) not in (1, 2) or shape[-1] % heads:
            raise ValueError(f"STTMTransformer: expected embeddings (L, D) or (D,) with D a multiple of heads={heads}, "
                             f"got {shape}. Choose another network or number of heads for this space.")
        if not 0 <= masked[0] <= masked[1] < 1:
            raise ValueError(f"STTMTransformer: expected two shares 0 <= a <= b < 1 in masked, got {masked}. Correct "
                             "prior.network.masked.")
        self.masked = tuple(masked)
        n_tokens, width = (1, *shape)[-2:]
        self.time_proj = Timesteps(width, True, 0)
        self.time_embedding = TimestepEmbedding(width, width)
        self.image_positions = nn.Parameter(width**-0.5 * torch.randn(n_tokens, width))
        self.brain_positions = nn.Parameter(width**-0.5 * torch.randn(n_tokens, width))
        self.null = nn.Parameter(width**-0.5 * torch.randn(n_tokens, width))
        layer = nn.TransformerDecoderLayer(width, heads, feedforward * width, 0.0, "gelu", batch_first=True,
                                           norm_first=True)
        self.blocks = nn.TransformerDecoder(layer, depth, nn.LayerNorm(width))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor, keep: Tensor) -> Tensor:
        """See `PriorNetwork.forward`."""
        tokens = (len(x), *self.null.shape)
        memory = torch.where(keep[:, :, None] > 0, condition.reshape(tokens), self.null) + self.brain_positions
        noisy = torch.cat([self.time_embedding(self.time_proj(t))[:, None], x.reshape(tokens) + self.image_positions],
                          dim=1)
        out = self.blocks(noisy, memory, memory_key_padding_mask=self._hidden(memory) if self.training else None)
        return self.out(out[:, 1:]).reshape(x.shape)

    def _hidden(self, memory: Tensor) -> Tensor:
        """Return ``(B, L)`` bool, true for the brain tokens that are hidden: equally many in every row."""
        # the global generator, as for dropout: the trainer seeds it anew
        low, high = self.masked
        n = int((low + (high - low) * torch.rand((), device="cpu").item()) * memory.shape[1])
        order = torch.rand(memory.shape[:2], device=memory.device).argsort(dim=1)
        return order < n
