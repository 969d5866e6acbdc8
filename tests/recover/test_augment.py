"""Changes of training images: each does what it says, to each image in its own way."""

from __future__ import annotations

import pytest
import torch

from smidgen.errors import DataError, UserError
from smidgen.recover.augment import augmented, check_images, mixed, read_augment


def drawn(names: list[str], images: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return augmented(images, names, torch.Generator().manual_seed(seed))


def test_a_shift_moves_and_repeats_the_border():
    images = torch.arange(36.0).reshape(1, 1, 6, 6).repeat(200, 2, 1, 1)
    moved = drawn(["shift2"], images)
    found = set()
    for one in moved:
        assert torch.equal(one[0], one[1]), "channels move together"
        inner = int(one[0, 3, 3]) - 21  # where nothing of the border is in view
        found.add((round(inner / 6), inner - 6 * round(inner / 6)))
    assert found == {(down, right) for down in range(-2, 3) for right in range(-2, 3)}
    assert moved.min() >= 0
    assert moved.max() <= 35


def test_half_of_them_are_mirrored():
    images = torch.rand(400, 1, 3, 4)
    changed = drawn(["flip"], images)
    mirrored = torch.tensor([torch.equal(a, b.flip(-1)) for a, b in zip(changed, images, strict=True)])
    same = torch.tensor([torch.equal(a, b) for a, b in zip(changed, images, strict=True)])
    assert bool((mirrored ^ same).all())
    assert 150 < int(mirrored.sum()) < 250


def test_zoom_and_turn_keep_the_middle_and_bound_the_change():
    # A smooth slope: its values tell where each pixel was read.
    places = torch.linspace(-1, 1, 33)
    slope = places.repeat(64, 1, 33, 1)
    turned = drawn(["turn10"], slope)
    assert torch.allclose(turned[:, :, 16, 16], slope[:, :, 16, 16], atol=1e-4)
    steepness = (turned[:, 0, 16, 20] - turned[:, 0, 16, 12]) / (slope[:, 0, 16, 20] - slope[:, 0, 16, 12])
    assert float(steepness.min()) >= 0.9847  # cosine of 10 degrees
    assert float(steepness.max()) <= 1.0001
    zoomed = drawn(["zoom20"], slope)
    steepness = (zoomed[:, 0, 16, 20] - zoomed[:, 0, 16, 12]) / (slope[:, 0, 16, 20] - slope[:, 0, 16, 12])
    assert float(steepness.min()) >= 1 / 1.2 - 1e-3
    assert float(steepness.max()) <= 1.0001
    assert len(set(steepness.tolist())) > 10


def test_a_turn_is_a_turn_in_images_that_are_not_square():
    rows, columns = torch.meshgrid(torch.arange(21.0) - 10, torch.arange(41.0) - 20, indexing="ij")
    turned = drawn(["turn45"], torch.stack([rows, columns]).repeat(32, 1, 1, 1))
    at = turned[:, :, 10, 25]  # five pixels right of the middle: still five away, wherever it turned to
    assert torch.allclose(at.norm(dim=1), torch.tensor(5.0), atol=0.02)


def test_bent_places_are_pushed_as_far_as_told_and_their_neighbours_alike():
    tall, wide = 24, 40
    rows, columns = torch.meshgrid(torch.arange(1.0 * tall) - 12, torch.arange(1.0 * wide) - 20, indexing="ij")
    places = torch.stack([rows, columns]).repeat(2000, 1, 1, 1)
    pushed = drawn(["elastic2"], places) - places
    inner = pushed[:, :, 5:-5, 5:-5]  # nothing beside the image is in view
    root_mean_square = inner.square().mean(0).sqrt()
    assert torch.allclose(root_mean_square[0], torch.tensor(0.02 * tall), rtol=0.08)
    assert torch.allclose(root_mean_square[1], torch.tensor(0.02 * wide), rtol=0.08)
    assert inner.mean(0).abs().max() < 0.1 * 0.02 * wide
    # Two places one Gaussian's width apart are correlated as its own autocorrelation is: exp(-1/4).
    apart = round(4 / 29 * wide)
    there, here = inner[:, 1, :, apart:], inner[:, 1, :, :-apart]
    assert float((there * here).mean() / (there.std() * here.std())) == pytest.approx(
        torch.tensor(-0.25 * (apart / wide / (4 / 29)) ** 2).exp().item(), abs=0.03
    )
    assert inner[:, :, 1:, 1:].sub(inner[:, :, :-1, :-1]).abs().max() < 1.2, "nothing is folded"


def test_images_and_their_labels_are_mixed_alike():
    classes = 7
    labels = torch.arange(3000) % (classes - 1)  # of the last there is none
    images = torch.nn.functional.one_hot(labels, classes).float()[:, :, None, None].repeat(1, 1, 2, 3)
    whole, shares = mixed(images, labels, classes, torch.Generator().manual_seed(5))
    assert shares is not None
    assert torch.equal(whole, shares[:, :, None, None].expand_as(whole))
    assert torch.allclose(shares.sum(1), torch.ones(3000))
    assert bool((shares[:, -1] == 0).all())
    own = shares.gather(1, labels[:, None]).squeeze(1)
    apart = own[own < 1]  # of those mixed with another class
    assert apart.mean() == pytest.approx(0.5, abs=0.03)
    assert torch.allclose(torch.quantile(apart, torch.tensor([0.1, 0.9])), torch.tensor([0.1, 0.9]), atol=0.04)
    assert mixed(images, None, 0, torch.Generator().manual_seed(5))[1] is None


def test_the_same_seed_is_the_same_change():
    images = torch.rand(8, 3, 9, 7)
    names = ["shift1", "flip", "zoom10", "turn5", "elastic3"]
    assert torch.equal(drawn(names, images, 3), drawn(names, images, 3))
    assert not torch.equal(drawn(names, images, 3), drawn(names, images, 4))
    assert torch.equal(drawn([], images), images)


def test_what_cannot_be_is_told():
    for name in ("shift", "shift0", "flip2", "blur3", "zoom9999", "elastic"):
        with pytest.raises(UserError, match="augment: "):
            read_augment(name)
    with pytest.raises(DataError, match="an input has the shape"):
        check_images([40], ["flip"])
    with pytest.raises(DataError, match="out of sight"):
        check_images([1, 4, 9], ["shift4"])
