"""Package metadata: three source folders, installed as the one import package ``mmln_pipeline``."""

import platform
import re
from pathlib import Path

from setuptools import Extension, find_packages, setup

ROOT = Path(__file__).parent

# Folder of each part of the package: `workflows` and `bids_app` stand at the top level of the repository,
# but are only ever installed below `mmln_pipeline`, so that no generic name reaches site-packages.
FOLDERS = {
    "mmln_pipeline": "mmln_pipeline",
    "mmln_pipeline.workflows": "workflows",
    "mmln_pipeline.bids_app": "bids_app",
}


def read_version():
    """Return ``__version__`` of the package without importing it (its dependencies may be missing)."""
    text = (ROOT / "mmln_pipeline" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__(?:: str)? = "([^"]+)"', text, re.MULTILINE).group(1)


def list_packages():
    """Return the names of every package below the mapped folders."""
    names = []
    for package, folder in FOLDERS.items():
        names += [package, *(f"{package}.{name}" for name in find_packages(str(ROOT / folder)))]
    return names


CONVERT = ["fslpy>=3.20", "nitransforms>=25.1"]
TRAIN = ["joblib>=1.4", "lightning>=2.2"]
COMPARE = ["antspyx>=0.5", "einops>=0.7", "monai>=1.4", "picsl-greedy>=1.4"]
TEST = [
    *CONVERT,
    *TRAIN,
    *COMPARE,
    "bids-validator-deno>=3",
    "boutiques>=0.5.30",
    "build>=1.2",
    "hypothesis>=6",
    "pytest>=8",
    "pytest-cov>=5",
    "pytest-xdist>=3.6",
    "setuptools>=70.1",
    "torchio>=0.20",
]
DOCS = [
    *CONVERT,
    "furo>=2025.7",
    "myst-parser>=4",
    "pygraphviz>=2",
    "sphinx>=8",
    "sphinx-argparse-cli>=1.19",
    "sphinx-gallery>=0.19",
    "torchio>=0.20",
]

# Libraries that the package opens by ctypes. Without a compiler it is built without them, and runs slower.
# Not -ffast-math: linked with it, a library makes the whole process round small numbers to zero.
SOURCES = ["mmln_pipeline/fields/kernels.c", "mmln_pipeline/network/convolution.c"]
FLAGS = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math", "-Wno-psabi"]


def list_libraries():
    """Return the library for any CPU of the machine's kind and, for x86-64, that for CPUs with AVX2."""
    targets = {"_native": []}
    if platform.machine() in ("x86_64", "AMD64"):
        targets["_native_avx2"] = ["-march=haswell"]
    return [
        Extension(f"mmln_pipeline.machine.{name}", SOURCES, extra_compile_args=[*FLAGS, *more], optional=True)
        for name, more in targets.items()
    ]


setup(
    name="mmln-pipeline",
    version=read_version(),
    description="Brain MRI registration with the multi-strategy mutual learning network (MMLN) as a BIDS App",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Medical Science Apps.",
    ],
    keywords=["BIDS", "MRI", "brain", "deformable registration", "deep learning", "Nipype"],
    packages=list_packages(),
    package_dir=FOLDERS,
    ext_modules=list_libraries(),
    package_data={
        "mmln_pipeline": [
            "py.typed",
            "weights/*.safetensors",
            "weights/*.json",
            "atlas/tables/*.tsv",
            "reporting/report.yml",
            "reporting/templates/*",
        ],
        "mmln_pipeline.workflows": ["references.bib"],
    },
    python_requires=">=3.10",
    install_requires=[
        "bids-validator>=1.13",
        "contourpy>=1.2",
        "dacite>=1.8",
        "h5py>=3.8",
        "isal>=1.6",
        "jinja2>=3",
        "markdown-it-py>=3",
        "markupsafe>=2",
        "matplotlib>=3.7",
        "nibabel>=5.2",
        "nilearn>=0.11",
        "nipype>=1.8.6",
        "nireports>=25",
        "numpy>=1.24",
        "pandas>=2",
        "pathspec>=0.12",
        "pillow>=10",
        "psutil>=5.9",
        "pybids>=0.17",
        "pybtex>=0.25",
        "pyyaml>=6",
        "rich>=13",
        "safetensors>=0.4",
        "scipy>=1.11",
        "SimpleITK>=2.3",
        "templateflow>=24",
        'tomli>=2; python_version < "3.11"',
        "tomli-w>=1",
        "torch>=2.4",
    ],
    extras_require={
        "convert": CONVERT,
        "train": TRAIN,
        "compare": [*TRAIN, *COMPARE],
        "test": TEST,
        "docs": DOCS,
        "dev": [*TEST, *DOCS, "import-linter>=2", "mypy>=1.10", "pre-commit>=3", "ruff>=0.6", "tabulate>=0.9"],
    },
    entry_points={
        "console_scripts": [
            "mmln = mmln_pipeline.cli:main",
            "mmln-bids = mmln_pipeline.bids_app.run:main",
        ]
    },
    zip_safe=False,
)
