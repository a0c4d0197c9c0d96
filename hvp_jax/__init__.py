"""HVP-Net in JAX: hierarchical visual perception for text-video retrieval (arXiv 2601.12768)."""
