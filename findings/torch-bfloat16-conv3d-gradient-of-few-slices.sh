#!/usr/bin/env bash
# torch 2.13.0, CPUs with AVX-512 and bfloat16: the gradient of a bfloat16 conv3d's weights is whatever the memory held when a small
# image of 17 channels or more has fewer slices (first axis) than the kernel, but more than one: 2 for a kernel of 3, 3 or 4 for
# one of 5. Outputs and the image's gradient are right, and so is float32; few rows or columns do no harm, and 2 slices of 48 x 56
# voxels were right. Deep U-Nets on small volumes get there.
# Tried only where the CPU has these instructions; elsewhere PyTorch takes another path.
set -euo pipefail
if ! grep -q avx512_bf16 /proc/cpuinfo; then
    echo "not tried: this CPU has no avx512_bf16"
    exit 0
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.3.5
"$folder/venv/bin/python" - <<'PY'
import torch
from torch.nn.functional import conv3d

torch.manual_seed(0)


def error(shape, kernel, kind):
    """Largest relative error of the weight gradient beside double precision; nan counts as endless."""
    image = torch.randn(1, 32, *shape).to(kind)
    weight = torch.randn(32, 32, kernel, kernel, kernel).to(kind)
    slope = torch.randn(1, 32, *shape).to(kind)
    exact = weight.double().requires_grad_()
    conv3d(image.double(), exact, padding=kernel // 2).backward(slope.double())
    worst = 0.0
    for _ in range(5):
        used = [torch.full((2**n,), torch.nan) for n in range(6, 20)]  # memory as a training leaves it
        del used
        found = weight.clone().requires_grad_()
        conv3d(image, found, padding=kernel // 2).backward(slope)
        off = ((found.grad.double() - exact.grad).abs().max() / exact.grad.abs().max()).nan_to_num(torch.inf)
        worst = max(worst, float(off))
    return worst


print(f"torch {torch.__version__}")
for shape, kernel, kind, right in [
    ((1, 6, 6), 3, torch.bfloat16, True),
    ((2, 6, 6), 3, torch.bfloat16, False),
    ((3, 6, 6), 3, torch.bfloat16, True),
    ((6, 2, 6), 3, torch.bfloat16, True),
    ((6, 6, 2), 3, torch.bfloat16, True),
    ((3, 6, 6), 5, torch.bfloat16, False),
    ((5, 6, 6), 5, torch.bfloat16, True),
    ((2, 6, 6), 3, torch.float32, True),
]:
    off = error(shape, kernel, kind)
    print(f"{shape}, kernel {kernel}, {kind}: gradient off by {off:.2g} of its largest")
    if (off < 0.05) != right:
        raise SystemExit("changed: this gradient was " + ("right" if right else "wrong"))
PY
