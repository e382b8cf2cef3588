"""Models of timm, where it can be imported (it needs torchvision)."""

import pytest
import torch

from lightning_unlearn import PublicBackbone

try:
    import timm
except Exception as problem:  # torchvision fails in its own way beside another torch
    pytest.skip(f"needs timm and torchvision: {problem}", allow_module_level=True)


@pytest.mark.parametrize(
    ("name", "options", "features"),
    [
        ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8}, 4 * 2 * 192),
        ("resnet10t", {}, 4 * (64 + 128 + 256) + 512),
    ],
)
def test_a_model_of_timm_is_read_at_four_depths(name, options, features):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0, **options)
    made = PublicBackbone(model, public_data=torch.randn(6, 3, 32, 32))
    assert len(made.taps) == 4
    x = torch.randn(4, 3, 32, 32)
    assert made(x).shape == (4, features)
    own = PublicBackbone(
        model, [""], standardize="none", unit_norm=False, scale=1.0, public_data=x
    )
    torch.testing.assert_close(own(x), model(x))
