"""Packaging of unimp_jax: three packages and one console command."""

from pathlib import Path

from setuptools import find_packages, setup

TEST = ["pytest>=8", "pytest-xdist>=3.8", "hypothesis>=6.100", "qwix>=0.1.8"]
S3 = "s3fs>=2026.2"
STORE = [S3, "aiobotocore[boto3]>=3", "moto[s3]>=5.2", "flask>=3", "flask-cors>=5"]  # with a server to test against

setup(
    name="unimp_jax",
    version="0.1.0",
    description="UniMP (unified multi-modal personalisation by generation) in JAX, from one core to a pod.",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    classifiers=[f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)],
    packages=find_packages(include=["unimp_jax*", "data_pipelines*", "experiments*"]),
    package_data={
        "data_pipelines": ["sources/*.tsv", "sources/embedded/movielens/**/*", "sources/embedded/movielens/*"],
        "experiments": ["*.jinja", "report/*.jinja", "launch/*"],
    },
    install_requires=[
        # flax up to 0.12.8 breaks on jax from 0.11.1 on, and flax 0.12.9 needs Python 3.12. Tested are jax 0.10.2 with
        # flax 0.12.8, and jax 0.12.0.1 with flax 0.12.12.
        "jax>=0.10,<0.11; python_version < '3.12'",
        "jax>=0.10,<0.13; python_version >= '3.12'",
        "flax>=0.12.5,<0.12.9; python_version < '3.12'",
        "flax>=0.12.9,<0.14; python_version >= '3.12'",
        "optax>=0.2.5,<0.3",
        "orbax-checkpoint>=0.11.30,<0.13",
        "grain>=0.2.15,<0.3",
        "array-record>=0.8,<0.9",
        "tensorflow-datasets>=4.9.9,<5",
        "protobuf>=4.25",
        "importlib_resources>=6",  # which tensorflow-datasets uses and does not ask for
        "transformers>=5,<6",
        "tokenizers>=0.22,<0.24",
        "numpy>=2,<3",
        "scipy>=1.17",
        "pyarrow>=18",
        "polars>=1.30",
        "pillow>=11",
        "requests>=2.32",
        "urllib3>=2.3",
        "filelock>=3.30",
        "etils[epath]>=1.12",
        "fsspec>=2025.5",
        "tenacity>=9",
        "safetensors>=0.8",
        "einops>=0.8",
        "huggingface_hub>=1",
        "ml_dtypes>=0.5",
        "tyro>=1,<2",
        "pydantic>=2.8,<3",
        "pyyaml>=6",
        "tensorboardX>=2.6,<3",
        "tqdm>=4.66",
        "jinja2>=3.1",
        "matplotlib>=3.9",
        "sacrebleu>=2.5",
        "rouge-score>=0.1.2",
        "nltk>=3.9",
        "scikit-learn>=1.5",
        "submitit>=1.5",  # the jobs of sweeps, on this machine and under SLURM
        "scikit-image>=0.25",  # PSNR and SSIM of reconstructed images
    ],
    extras_require={
        "cuda": ["jax[cuda13]"],
        "tpu": ["jax[tpu]"],
        "torch": ["torch>=2.6"],  # .pt, .pth and .ckpt files, and tests against transformers
        "smolvlm": ["num2words>=0.5", "torchvision>=0.21"],  # which transformers' processor of SmolVLM needs, in tests
        "s3": [S3],  # data and runs in an object store
        "gcs": ["gcsfs>=2025.5"],
        "gguf": ["gguf>=0.17"],
        "beam": ["apache-beam>=2.60"],  # large sources, encoded by other machines
        "wordllama": ["wordllama>=0.4"],  # word vectors for `unimp features`; MIT
        "sweep": ["optuna>=4.1"],  # the search for hyper-parameters
        "wandb": ["wandb>=0.19"],  # the log of a run at Weights & Biases
        "docs": ["sphinx>=8", "myst-nb>=1.1", "furo"],
        "test": TEST,  # what `make test-newer` needs
        "dev": [*TEST, *STORE, "networkx>=3", "scipy>=1.17", "ruff>=0.12", "mypy>=1.15", "optuna>=4.1"],
    },
    entry_points={"console_scripts": ["unimp=experiments.entry_point:main"]},
)
