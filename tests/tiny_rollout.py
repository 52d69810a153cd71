"""The rollout that tests of slots and of eight bits share: ten prompts, three samples each, three stop ids."""

import jax

from pbrl_jax.rollout.sampling import sampling_params

G, R = 3, 30
LENGTHS = (6, 1, 4, 3, 5, 2, 6, 6, 2, 1)
SAMPLING = sampling_params(1.0, 1.0, 0, (4, 9, 13))
KEY = jax.random.key(9)
