"""`python -m pbrl_jax VERB` is `pbrl VERB`."""

from pbrl_jax.cli import main

raise SystemExit(main())
