"""The model, as pure functions of arrays. Imports only JAX, Flax, NumPy and jaxtyping."""
