"""Simulated devices on a CPU."""

import jax


def simulate_devices(count: int) -> None:
    """Splits the CPU into `count` devices. Has no effect once JAX has initialised its devices."""
    if getattr(jax.config, "jax_num_cpu_devices") < count:  # noqa: B009 - an undeclared attribute
        jax.config.update("jax_num_cpu_devices", count)
