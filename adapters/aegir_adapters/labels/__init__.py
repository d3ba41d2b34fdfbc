"""What others have found out that the latents of an SAE stand for.

labels = load_labels("exports/gemma-2-2b/20-gemmascope-res-16k")
labels[204]
"""

from aegir_adapters.labels.labels import Labels, load_labels

__all__ = ["Labels", "load_labels"]
