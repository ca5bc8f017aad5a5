"""Optimizers shared by several presets."""

from unimp_jax.training.optimizer import OptimizerConfig

FROM_NOTHING = OptimizerConfig(
    learning_rate=4e-3, warmup=0.03, final=0.02, weight_decay=0.05, decay="matrices", b2=0.98
)
"""For small models that are trained from scratch."""
