"""From patches to embeddings: encoders by name or card, their weights, inputs and embeddings.

from mfcore import encoders
encoders.load("dinov2_vits14").embed(patches)
"""

from mfcore.encoders.card import EncoderCard, EncoderError, card_table
from mfcore.encoders.catalogue import OwnEncoder, card_of, names
from mfcore.encoders.network import (
    Encoder,
    build_network,
    choose_device,
    computes_bfloat16,
    load,
    read_out,
)

__all__ = [
    "Encoder",
    "EncoderCard",
    "EncoderError",
    "OwnEncoder",
    "build_network",
    "card_of",
    "card_table",
    "choose_device",
    "computes_bfloat16",
    "load",
    "names",
    "read_out",
]
