#!/bin/sh
# Install the checkout in the current folder into /opt/mmln, pinned by constraints.txt, and leave out what no run needs.
# Dockerfile and mmln.def run it; Python and a C compiler have to be there. TORCH_INDEX: see the Makefile.
# Without [convert], whose dill torch would import: dill wants a temporary folder before there is one.
set -eu
export PIP_CONSTRAINT="$PWD/constraints.txt" PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
python3 -m venv /opt/mmln
/opt/mmln/bin/python -m pip install ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} .

cd "$(/opt/mmln/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
# Tests of libraries with their data. Packages called `test` or `testing` stay where they are imported by others.
find . -type d -name tests -prune -exec rm -rf {} +
# What extensions of torch are built with, and its own test programs.
find torch/bin -type f ! -name torch_shm_manager -delete
rm -rf torch/include torch/share torch/test torch/lib/*.a torch/lib/*_test.so
# nilearn's surfaces; its MNI template, which is ours by default, stays.
rm -rf nilearn/datasets/data/fsaverage5
# Stubs and C sources.
find . -type f \( -name '*.pyi' -o -name '*.pxd' -o -name '*.pyx' -o -name '*.h' -o -name '*.hpp' \) -delete
/opt/mmln/bin/python -m pip uninstall --quiet --yes pip
