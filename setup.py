"""Installs `pbrl_jax` and the command `pbrl`.

Lower bounds are the versions this package is tested with. One list serves Python 3.11 (where the index offers
jax 0.10) and Python 3.12 or newer (jax 0.11). numpy, etils and safetensors come with jax, orbax and transformers.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

JAX = ">=0.10,<0.12"

REQUIREMENTS = [
    f"jax{JAX}",
    "flax>=0.12.7",
    "optax>=0.2.7",
    "orbax-checkpoint>=0.12.7",
    "transformers>=5.20",
    "jinja2>=3.1",
    # The newest Python with wheels of TensorFlow is 3.13, and there are none for Windows: texts are then encoded on the
    # host, and the similarity rouge_l is refused.
    "tensorflow-text>=2.20; python_version < '3.14' and platform_system != 'Windows'",
    "sentencepiece>=0.2.1",
    "datasets>=5.0",
    "pyarrow>=26.0",
    "tyro>=1.0.10",
    "rich>=14.0",
    "jaxtyping>=0.3.10",
    "scipy>=1.15",
    "tensorboardX>=2.6.4",
    "py3langid>=0.4",
    "pycld2>=0.42",
    "math-verify[antlr4-13-2]>=0.9",
    "sacrebleu>=2.5",
    "pyyaml>=6.0",
    "httpx2>=2.0,<3",
]

EXTRAS = {
    "tpu": [f"jax[tpu]{JAX}"],
    "cuda": [f"jax[cuda12]{JAX}"],
    "lora": ["qwix>=0.1.8"],
    "eval": ["lm-eval>=0.4.10"],
    "wandb": ["wandb>=0.22"],
    "trackio": ["trackio>=0.43"],
    "mlflow": ["mlflow-skinny>=3.17"],
    "plots": ["matplotlib>=3.10"],
    "docs": ["mkdocs-material>=9.6", "mkdocstrings-python>=1.16"],
    "dev": [
        "pytest>=9.0",
        "pytest-xdist>=3.8",
        "hypothesis>=6.150",
        "matplotlib>=3.10",
        "ruff>=0.14",
        "mypy>=2.4",
        "types-PyYAML>=6.0",
        "beartype>=0.22",
        "babel>=2.16",
        "qwix>=0.1.8",
    ],
}

CONFIGS = {f"pbrl_jax.{name.replace('/', '.')}": name for name in ("configs", "configs/machines", "configs/paper")}

root = Path(__file__).parent
readme = root / "README.md"
# Read, not imported: the package is not there yet.
version = re.search(r'^__version__ = "(.+)"$', (root / "pbrl_jax/core/version.py").read_text(encoding="utf-8"), re.M)[1]

setup(
    name="pbrl_jax",
    version=version,
    description="Multilingual reasoning by reinforcement learning from English pivot references, in JAX",
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    # The experiment files lie beside the package in a checkout, and inside it in a wheel: `pbrl train quickstart`.
    packages=[*find_packages(include=["pbrl_jax", "pbrl_jax.*"]), *CONFIGS],
    package_dir=CONFIGS,
    package_data={
        "pbrl_jax": [
            "py.typed",
            "data/sources/*.json",
            "eval/*.json",
            "eval/benchmarks/*.json",
            "report/page.*",
            "text/*.json",
        ]
    },
    install_requires=REQUIREMENTS,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["pbrl = pbrl_jax.cli:main"]},
)
