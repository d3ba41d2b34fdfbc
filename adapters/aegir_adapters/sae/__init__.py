"""Sparse autoencoders: exact modules, a trainer for small ones, and the files they come in.

    sae = load_sae("path/to/layer_12")
    sae = load_sae("owner/repository", layer=12)
    top = sae.top(residuals, k=16)  # what a recorder writes, per token

`StandardSAE`, `TopKSAE`, `JumpReLUSAE` and `GatedSAE` share one interface, `SparseAutoencoder`, and
with `Transcoding` each is a transcoder. All are plain torch modules without parameters: no
optimizer, checkpoint or gradient of the observed model ever meets their tensors.
"""

from aegir_adapters.sae.autoencoder import SparseAutoencoder
from aegir_adapters.sae.fidelity import Fidelity, fidelity
from aegir_adapters.sae.gated import GatedSAE
from aegir_adapters.sae.groupmax import GroupMaxSAE
from aegir_adapters.sae.jumprelu import JumpReLUSAE
from aegir_adapters.sae.latents import TopLatents
from aegir_adapters.sae.loading import find_sae, load_sae
from aegir_adapters.sae.saelens import save_sae
from aegir_adapters.sae.standard import StandardSAE
from aegir_adapters.sae.topk import TopKSAE
from aegir_adapters.sae.training import UnusableActivationsError, train_topk
from aegir_adapters.sae.transcoding import Transcoding
from aegir_adapters.sae.weights import Origin, Weights

__all__ = [
    "Fidelity",
    "GatedSAE",
    "GroupMaxSAE",
    "JumpReLUSAE",
    "Origin",
    "SparseAutoencoder",
    "StandardSAE",
    "TopKSAE",
    "TopLatents",
    "Transcoding",
    "UnusableActivationsError",
    "Weights",
    "fidelity",
    "find_sae",
    "load_sae",
    "save_sae",
    "train_topk",
]
