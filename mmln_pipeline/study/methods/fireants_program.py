"""Run FireANTs on a pair, in its own environment: ``python fireants_program.py PAIR.npz WARP.npy OPTIONS.json``.

Nothing of this package is imported: that environment need not have it.
"""

import json
import sys

import numpy as np
import SimpleITK as sitk
import torch


def main(pair_path: str, warp_path: str, options: str) -> None:
    """Register; the warp is in voxels, shape (3, I, J, K), components in array-axis order."""
    # Where this package is tested, that environment is not.
    from fireants.io.image import BatchedImages, Image
    from fireants.registration.greedy import GreedyRegistration
    from fireants.registration.syn import SyNRegistration

    wanted = json.loads(options)
    device = wanted["device"]
    if wanted["threads"]:
        torch.set_num_threads(wanted["threads"])
    torch.manual_seed(wanted["seed"])
    with np.load(pair_path) as pair:  # without geometry, so that its voxels are its world
        images = [BatchedImages([Image(sitk.GetImageFromArray(pair[n]), device=device)]) for n in ("fixed", "moving")]
        size = torch.tensor(pair["fixed"].shape[::-1], device=device)
    kind = {"greedy": GreedyRegistration, "syn": SyNRegistration}[wanted["algorithm"]]
    run = kind(
        scales=wanted["scales"],
        iterations=wanted["iterations"],
        fixed_images=images[0],
        moving_images=images[1],
        loss_type="cc",
        cc_kernel_size=wanted["window"],
        optimizer_lr=wanted["step"],
        smooth_grad_sigma=wanted["update_smoothing"],
        smooth_warp_sigma=wanted["total_smoothing"],
    )
    run.optimize()
    with torch.no_grad():
        there = run.get_warped_coordinates(*images)[0]
        start = torch.nn.functional.affine_grid(
            torch.eye(3, 4, device=device)[None], [1, 1, *there.shape[:3]], align_corners=True
        )[0]
        warp = (there - start) * (size - 1) / 2
    np.save(warp_path, warp.flip(-1).movedim(-1, 0).cpu().numpy().astype(np.float32))


if __name__ == "__main__":
    main(*sys.argv[1:])
