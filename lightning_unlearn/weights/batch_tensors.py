"""The tensors of a batch, whatever holds them."""

from collections.abc import Mapping

from torch import Tensor
from torch.utils._pytree import tree_leaves


def tensors_in(batch: object) -> list[Tensor]:
    """The tensors of a batch, in its order.

    Also those of mappings that torch's trees do not know, as tokenizers return them.
    """
    found = list[Tensor]()
    for leaf in tree_leaves(batch):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif isinstance(leaf, Mapping):
            found += [t for value in leaf.values() for t in tensors_in(value)]
    return found
