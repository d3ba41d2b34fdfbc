"""Sparse autoencoders: exact modules, a trainer for small ones, and the SAELens v6 files.

    sae = load_sae("path/to/layer_12")
    top = sae.top(residuals, k=16)  # what a recorder writes, per token

`StandardSAE`, `TopKSAE` and `JumpReLUSAE` share one interface, `SparseAutoencoder`. Each is a plain
torch module without parameters: no optimizer, checkpoint or gradient of the observed model ever
meets its tensors.
"""

from aegir_adapters.sae.autoencoder import SparseAutoencoder
from aegir_adapters.sae.fidelity import Fidelity, fidelity
from aegir_adapters.sae.jumprelu import JumpReLUSAE
from aegir_adapters.sae.latents import TopLatents
from aegir_adapters.sae.saelens import load_sae, save_sae
from aegir_adapters.sae.standard import StandardSAE
from aegir_adapters.sae.topk import TopKSAE
from aegir_adapters.sae.training import UnusableActivationsError, train_topk
from aegir_adapters.sae.weights import Origin, Weights

__all__ = [
    "Fidelity",
    "JumpReLUSAE",
    "Origin",
    "SparseAutoencoder",
    "StandardSAE",
    "TopKSAE",
    "TopLatents",
    "UnusableActivationsError",
    "Weights",
    "fidelity",
    "load_sae",
    "save_sae",
    "train_topk",
]
