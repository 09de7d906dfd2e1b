"""Packaging of summarymixing: dependency ranges and extras."""

from pathlib import Path

from setuptools import find_packages, setup

INSTALL = [
    # torch and torchaudio are released as matched pairs.
    "torch>=2.11,<2.12",
    "torchaudio>=2.11,<2.12",
    "speechbrain>=1.1.2,<1.2",
    "hyperpyyaml>=1.2.3,<2",
    "numpy>=1.26",
    "sentencepiece>=0.2",
    "soundfile>=0.13",
    "safetensors>=0.4",
    "tqdm>=4.66",
    "matplotlib>=3.8",
    "tensorboard>=2.16",
]
DEMO = ["espeakng-loader>=0.2"]  # speech synthesis for miniature corpora
# SpeechBrain needs both for language models; kenlm is compiled (CMake, C++).
KENLM = ["kenlm>=0.2", "pygtrie>=2.5"]
HUGGINGFACE = ["transformers>=5,<6"]  # to probe its encoders beside ours
HUB = ["huggingface_hub>=0.30"]  # to fetch and publish encoders
# To export encoders, to run what was exported, and to make it smaller.
ONNX = ["onnx>=1.18", "onnxruntime>=1.22", "onnxscript>=0.5"]
TEST = [*DEMO, *HUGGINGFACE, *HUB, *ONNX, "pytest>=8", "pytest-xdist>=3"]
DEV = [
    *TEST,
    "ruff>=0.12,<1",
    "mypy>=1.15",
    "yamllint>=1.35",
    "codespell>=2.3",
    "pre-commit>=4",
]

setup(
    name="summarymixing",
    version="0.1.0",
    description=(
        "Self-supervised speech pre-training in linear time: wav2vec 2.0 with "
        "a SummaryMixing Conformer, on SpeechBrain"
    ),
    long_description=Path(__file__).with_name("README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["summarymixing", "summarymixing.*"]),
    package_data={"summarymixing": ["py.typed"]},
    install_requires=INSTALL,
    entry_points={
        "console_scripts": ["summarymixing = summarymixing.cli:main"]
    },
    extras_require={
        "demo": DEMO,
        "hub": HUB,
        "huggingface": HUGGINGFACE,
        "kenlm": KENLM,
        "onnx": ONNX,
        "test": TEST,
        "dev": DEV,
    },
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3",
        "Topic :: Multimedia :: Sound/Audio :: Speech",
    ],
)
