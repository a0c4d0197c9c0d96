"""The model as functions of arrays: imports JAX and Flax alone."""
