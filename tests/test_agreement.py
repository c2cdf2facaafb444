"""Agreement of labels in one space: against the pairwise definition, and with images that cannot take part."""

import tracemalloc

import nibabel as nib
import numpy as np
import pytest

from mmln_pipeline.group.agreement import label_agreement
from mmln_pipeline.reporting.group_table import GroupTable, add_agreement

SHAPE = (7, 8, 9)


@pytest.fixture
def images(rng):
    return [rng.choice([0, 0, 4, 11, 205], SHAPE).astype(np.int16) for _ in range(4)]


def save(arrays, folder, affine=None):
    paths = {}
    for number, array in enumerate(arrays):
        paths[f"sub-{number}"] = folder / f"{number}.nii.gz"
        nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), paths[f"sub-{number}"])
    return paths


def test_it_is_dice_pooled_over_the_pairs(images, tmp_path):
    images[2][images[2] == 11] = 0
    found = label_agreement(save(images, tmp_path))
    for i, own in enumerate(images):
        others = [image for j, image in enumerate(images) if j != i]
        assert set(found[f"sub-{i}"]) == ({"4", "205"} if i == 2 else {"4", "11", "205"})
        for label, value in found[f"sub-{i}"].items():
            a = own == int(label)
            shared = sum((a & (other == int(label))).sum() for other in others)
            sizes = sum(a.sum() + (other == int(label)).sum() for other in others)
            assert value == pytest.approx(2 * shared / sizes)


def test_two_equal_brains_agree(images, tmp_path):
    found = label_agreement(save([images[0], images[0]], tmp_path))
    assert all(value == 1 for labels in found.values() for value in labels.values())


def test_one_image_other_grids_and_broken_files(images, tmp_path):
    assert label_agreement({}) == {} and label_agreement(save(images[:1], tmp_path)) == {}
    paths = save(images, tmp_path)
    nib.save(nib.Nifti1Image(images[3][1:], np.eye(4)), paths["sub-3"])
    paths["sub-2"].write_bytes(b"no image")
    paths["sub-9"] = tmp_path / "missing.nii.gz"
    assert set(label_agreement(paths)) == {"sub-0", "sub-1"}


def test_the_group_shows_it_where_the_template_has_no_labels():
    records = {"sub-0": {"dice": None}, "sub-1": {"dice": None}, "sub-2": {"dice": None}}
    table = GroupTable(add_agreement(records, {"sub-0": {"4": 0.5, "11": 0.7}, "sub-1": {"4": 0.6}}))
    assert table.structures == {"4": [0.5, 0.6], "11": [0.7]} and not table.are_structures_the_templates
    assert table.numbers("label_agreement") == pytest.approx({"sub-0": 0.6, "sub-1": 0.6})
    with_dice = GroupTable({"sub-0": {"dice_per_label_4": 0.9, "label_agreement_per_label_4": 0.5}})
    assert with_dice.structures == {"4": [0.9]} and with_dice.are_structures_the_templates


def test_many_labels_on_a_grid_of_many_blocks_count_as_in_whole_arrays(rng, tmp_path):
    arrays = [np.roll(rng.integers(0, 60, (17, 9, 20)), number).astype(np.int32) * 10**6 for number in range(5)]
    arrays.insert(2, (arrays[0] == 10**6) * np.int32(61 * 10**6))  # a label that no other image has
    found = label_agreement(save(arrays, tmp_path))
    assert found["sub-2"] == {"61000000": 0.0} and len(found) == 6
    for name, own in zip(found, arrays, strict=True):
        for number in np.unique(own[own > 0]).tolist():
            votes = sum((other == number).astype(int) for other in arrays)
            size, total = int((own == number).sum()), int(votes.sum())
            shared = int(votes[own == number].sum()) - size
            assert found[name][str(number)] == 2 * shared / (5 * size + total - size)


def test_memory_does_not_grow_with_the_number_of_images(images, tmp_path):
    paths = save([np.kron(image, np.ones((6, 6, 6), np.int16)) for image in images], tmp_path)
    peaks = []
    for times in (1, 8):
        tracemalloc.start()
        label_agreement({f"{name}-{time}": path for name, path in paths.items() for time in range(times)})
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]
