"""Fine-tuning CodeFormer's code prediction as the paper does (paper.md section 7): what is trained, on what loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ufr_edge.errors import ModelFileError

TRAINED = ("encoder.", "feat_emb.", "ft_layers.", "idx_pred_layer.", "position_emb")
"""Key prefixes of the trained part: 49,129,024 parameters in the released network."""

FROZEN = ("quantize.", "generator.", "fuse_convs_dict.")
"""Codebook, generator and CFT: bit-identical after fine-tuning."""


def trained_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trained part of a CodeFormer by key. Raises ModelFileError for a key of neither part."""
    parts: dict[str, nn.Parameter] = {}
    for key, parameter in network.named_parameters():
        if key.startswith(TRAINED):
            parts[key] = parameter
        elif not key.startswith(FROZEN):
            msg = f"{key} belongs to no part of CodeFormer: this is another network."
            raise ModelFileError(msg)
    return parts


def freeze_rest(network: nn.Module) -> dict[str, nn.Parameter]:
    """Let gradients reach the trained part only, and return it."""
    network.requires_grad_(False)
    parts = trained_parameters(network)
    for parameter in parts.values():
        parameter.requires_grad_(True)
    return parts


def encode(network: nn.Module, image: Tensor) -> Tensor:
    """Return the encoder's features of RGB images (B, 3, 512, 512) in [0, 1]: (B, 256, 16, 16)."""
    out: Tensor = network.get_submodule("encoder")(2 * image - 1)
    return out


def predict_codes(network: nn.Module, features: Tensor) -> Tensor:
    """Return the logits of the codes, (B, 256 tokens, 1024), for encoder features (B, 256, 16, 16)."""
    position = network.get_parameter("position_emb").unsqueeze(1)
    tokens = network.get_submodule("feat_emb")(features.flatten(2).permute(2, 0, 1))
    for layer in network.get_submodule("ft_layers").children():
        tokens = layer(tokens, query_pos=position.expand(-1, features.shape[0], -1))
    logits: Tensor = network.get_submodule("idx_pred_layer")(tokens)
    return logits.permute(1, 0, 2)


def nearest_codes(network: nn.Module, features: Tensor) -> Tensor:
    """Return the index of the nearest codebook entry of each token, int64 (B, 256), for features (B, 256, 16, 16)."""
    codebook = network.get_parameter("quantize.embedding.weight")
    return torch.cdist(features.flatten(2).transpose(1, 2), codebook[None]).argmin(2)


def codebook_features(network: nn.Module, labels: Tensor, like: Tensor) -> Tensor:
    """Return the codebook entries of labels (B, 256) as features shaped like `like` (B, 256, 16, 16)."""
    codebook = network.get_parameter("quantize.embedding.weight")
    return codebook[labels].transpose(1, 2).reshape(like.shape)


def code_loss(
    network: nn.Module, teacher: nn.Module, image: Tensor, target: Tensor, *, w_features: float = 1.0, w_codes: float = 0.5
) -> tuple[Tensor, dict[str, float]]:
    """Return MSE(encoder(image), codebook[labels]) + 0.5 CE(logits, labels), and both terms, unweighted.

    `image`, `target`: RGB (B, 3, 512, 512) in [0, 1]; the labels are the frozen `teacher`'s codes of the target
    (the pre-trained network itself). Generator and CFT are not run (paper.md section 7).
    """
    with torch.no_grad():
        labels = nearest_codes(teacher, encode(teacher, target))
    features = encode(network, image)
    logits = predict_codes(network, features)
    mse = F.mse_loss(features, codebook_features(network, labels, features).detach())
    entropy = F.cross_entropy(logits.transpose(1, 2), labels)
    parts = {"features": float(mse.detach()), "codes": float(entropy.detach())}
    return w_features * mse + w_codes * entropy, parts
