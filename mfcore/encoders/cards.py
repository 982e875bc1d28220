"""What is known of each encoder, one card each: the only place that names a model's facts.

A card decides how an encoder is built and how a patch becomes its input; `encoders` reads cards and has no model's name in
its code. ``facts`` says where a card's facts were read. Parameter counts were seen by building each architecture without
weights; a test builds them all again.
"""

from collections.abc import Mapping

from mfcore.encoders.cards_pathology import PATHOLOGY
from mfcore.encoders.cards_photographs import ANYWHERE, PHOTOGRAPHS
from mfcore.encoders.cards_schema import EncoderCard
from mfcore.encoders.cards_variants import variants

__all__ = ["CARDS", "TABLE_1", "EncoderCard"]

# the order in which Table 1 of Ganz et al. 2024 has them
TABLE_1 = ("gigapath", "h_optimus_0", "virchow", "virchow2", "uni", "phikon", "vit_huge_in21k", "resnet50")

_OWN = {card.name: card for card in (*ANYWHERE, *PATHOLOGY, *PHOTOGRAPHS)}
CARDS: Mapping[str, EncoderCard] = _OWN | {card.name: card for card in variants(_OWN)}
