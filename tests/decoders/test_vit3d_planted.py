"""ViT3D as a whole: one model without weights of any subject finds a planted signal in all of them."""

import numpy as np
import torch
from planted import PlantedData

from brain2img.adapters.volume_patches import VolumePatches
from brain2img.decoders.deep import DeepDecoder
from brain2img.encoders.vit3d import ViT3D
from brain2img.heads.two_layers import TwoLayers
from brain2img.losses import MSE
from brain2img.records import EmbeddingSpec


def test_a_planted_signal_is_found_in_all_subjects_with_one_model(tmp_path):
    specs = VolumePatches.tiny().specs
    torch.manual_seed(0)
    encoder = ViT3D(specs=specs, patch=3, width=32, n_layers=1, n_heads=2, dropout=0.0)
    head = TwoLayers(hidden=encoder.hidden, spec=EmbeddingSpec(name="tiny", shape=(8,)), space="tiny",
                     losses={"mse": MSE()}, width=32)
    decoder = DeepDecoder(adapter=VolumePatches(specs=specs, grid=encoder.grid), encoder=encoder, heads={"tiny": head},
                          training={"max_epochs": 12, "batch_size": 32, "lr": 3e-3, "accelerator": "cpu"})
    data = PlantedData(specs=specs, n=320)
    decoder.fit(data, folder=tmp_path)
    batch = data.batch("val", range(120))
    predicted, true = decoder.predict(batch)["tiny"], batch.targets["tiny"].numpy()
    for rows in batch.rows.values():
        r = np.corrcoef(predicted[rows].ravel(), true[rows].ravel())[0, 1]
        assert r > 0.6  # without a signal |r| stays below 3.29 / sqrt(60 * 8) = 0.15 in 99.9 % of cases
