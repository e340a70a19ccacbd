"""Segments are proposed by common fate, and pixels assigned to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from perception.discovery.common_fate import coherence, propose_segments
from perception.slots.segments import DEFAULTS, SegmentProposals, TwinSplit, colours_of
from tests.perception.film import BLUE, CYAN, ORANGE, RED, SIZE, WHITE, Film, Square, draw, places


def look(film: Film, wanted: int = 2, seed: int = 0) -> SegmentProposals:
    return propose_segments(film.images, film.foreground, wanted, np.random.default_rng(seed))


def shares_of(proposals: SegmentProposals, film: Film) -> torch.Tensor:
    """Share of the pixels of each square (S,) that each thing (N,) has, over all frames: (S, N)."""
    shares = proposals(film.images, film.foreground.float())
    squares = torch.stack(
        [film.squares == i for i in range(int(film.squares.max()) + 1)], dim=1
    ).float()
    return torch.einsum("bshw,bnhw->sn", squares, shares) / squares.sum(dim=(0, 2, 3)).unsqueeze(1)


def holders(proposals: SegmentProposals, film: Film) -> list[int]:
    """The thing that has (nearly) all pixels of each square, counted in the order in which they
    come; fails where none has."""
    best = shares_of(proposals, film).max(dim=1)
    assert best.values.min() > 0.9, "a square is divided among things"
    order = list(dict.fromkeys(best.indices.tolist()))
    return [order.index(i) for i in best.indices.tolist()]


def coat_and_cap(
    path: NDArray[np.int64], coat: tuple[int, int, int], cap: tuple[int, int, int]
) -> list[Square]:
    """A thing of two colours that moves as one."""
    return [Square(coat, path), Square(cap, path + [4, 0])]


def test_two_colours_that_move_together_are_one_thing() -> None:
    film = draw(
        [
            *coat_and_cap(places(0, x=(0, 24)), RED, ORANGE),
            Square(CYAN, places(1)),
            Square(BLUE, places(2)),
        ]
    )
    assert holders(look(film, wanted=3), film) == [0, 0, 1, 2]


def test_two_colours_that_move_apart_are_two_things() -> None:
    film = draw([Square(RED, places(0)), Square(ORANGE, places(1))])
    proposals = look(film, wanted=1)
    assert proposals.count == 2, "they are not to be merged where fewer are asked for"
    assert holders(proposals, film) == [0, 1]


def test_unlike_colours_stay_apart_sooner_than_alike_ones() -> None:
    alike, unlike = (
        coat_and_cap(places(0, x=(0, 24)), RED, ORANGE),
        coat_and_cap(places(1, x=(0, 24)), CYAN, BLUE),
    )
    film = draw([*alike, *unlike])
    assert holders(look(film, wanted=3), film) == [0, 0, 1, 2]


def white_fingers_and_board() -> Film:
    """A cyan hand with a white finger, and a white board with a red edge, far from the hand."""
    hand, board = places(0, x=(0, 22), y=(0, 10)), places(1, x=(0, 22), y=(18, 28))
    return draw(
        [
            Square(CYAN, hand),
            Square(WHITE, hand + [4, 0], side=3),
            Square(WHITE, board),
            Square(RED, board + [4, 0]),
        ]
    )


def test_a_shared_colour_goes_to_the_thing_that_is_near() -> None:
    film = white_fingers_and_board()
    proposals = look(film)
    assert (proposals.owner == -1).sum() == 1, "white lies in two places that move apart"
    white = proposals.codebook[proposals.owner == -1][0]
    torch.testing.assert_close(
        white, colours_of(torch.tensor(WHITE).view(1, 3, 1, 1) / 255).flatten(), atol=0.02, rtol=0
    )
    assert holders(proposals, film) == [0, 0, 1, 1]


def test_a_cluster_in_two_places_that_move_as_one_is_no_shared_one() -> None:
    gate = places(0, x=(2, 16))
    cover = gate - [2, 0]
    cover[::2] += [
        12,
        0,
    ]  # covers half of one post, then of the other, so that either is the larger
    film = draw([Square(CYAN, gate), Square(CYAN, gate + [12, 0]), Square(RED, cover)])
    proposals = look(film)
    assert (proposals.owner >= 0).all()
    cyan = shares_of(proposals, film).argmax(dim=1)[:2].tolist()
    assert cyan[0] == cyan[1]


def test_coherence_is_one_for_equal_paths_none_for_independent_ones_and_less_for_a_mirror() -> None:
    rng = np.random.default_rng(0)
    path, other = rng.normal(size=(2, 4000, 2))
    assert coherence(path, path) == 1.0
    assert coherence(path, path + [3.0, -2.0]) == pytest.approx(1.0), (
        "a thing may be beside the other"
    )
    assert coherence(path, other) == pytest.approx(0.0, abs=0.05)
    assert coherence(path, -path) == pytest.approx(-1.0)
    assert coherence(path, np.zeros_like(path)) == pytest.approx(0.0), (
        "one moves and the other rests"
    )


def two_squares(shared: bool) -> SegmentProposals:
    """A red and a blue thing, and white, which is shared or part of the red one."""
    colours = colours_of(torch.tensor([RED, BLUE, WHITE]).view(3, 3, 1, 1) / 255).view(3, 3)
    return SegmentProposals(colours, torch.tensor([0, 1, -1 if shared else 0]), 2)


@pytest.mark.parametrize("shared", [False, True])
def test_shares_are_the_foreground(shared: bool) -> None:
    film = draw([Square(RED, places(0)), Square(BLUE, places(1)), Square(WHITE, places(2))])
    foreground = torch.rand(film.squares.shape, generator=torch.Generator().manual_seed(0))
    shares = two_squares(shared)(film.images, foreground)
    assert shares.min() >= 0
    torch.testing.assert_close(
        shares.sum(dim=1), torch.where(foreground > DEFAULTS.min_alpha, foreground, 0.0)
    )


def test_a_shared_colour_goes_in_every_frame_to_the_thing_that_is_near_then() -> None:
    red, blue = places(0, x=(0, 6), steps=20), places(1, x=(22, 24), steps=20)
    white = red + [4, 0]
    white[::2] = blue[::2] + [4, 0]
    film = draw([Square(RED, red), Square(BLUE, blue), Square(WHITE, white)])
    shares = two_squares(shared=True)(film.images, film.foreground.float())
    with_blue = (shares[:, 1] * (film.squares == 2)).sum(dim=(1, 2)) / (film.squares == 2).sum(
        dim=(1, 2)
    )
    assert with_blue[::2].min() > 0.9 and with_blue[1::2].max() < 0.1


def test_a_thing_out_of_sight_has_nothing() -> None:
    red, blue, white = (
        places(0, x=(8, 28), steps=20),
        places(1, x=(8, 28), steps=20),
        places(2, steps=20),
    )
    blue[::2] = SIZE  # beyond the picture
    white[::2] = 0  # in the corner, where the centroid of no pixels would lie
    film = draw([Square(RED, red), Square(WHITE, white), Square(BLUE, blue)])
    pixels = two_squares(shared=True)(film.images, film.foreground.float()).sum(dim=(2, 3))
    assert (pixels[::2, 1] < 1e-3).all() and (pixels[1::2, 1] > DEFAULTS.min_pixels).all()


@pytest.mark.parametrize("side", [4, 18, 26])
def test_spread_follows_the_size(side: int) -> None:
    film = draw([Square(RED, places(0, x=(0, 33 - side), y=(0, 33 - side), steps=10), side)])
    proposals = two_squares(shared=False)
    before = proposals.spread.clone()
    proposals(film.images, film.foreground.float())
    assert torch.equal(proposals.spread, before), "only where it is fitted"
    proposals.fit(film.images, film.foreground.float())
    assert proposals.spread[0].item() == pytest.approx(
        max(DEFAULTS.min_spread, ((side**2 - 1) / 12) ** 0.5), rel=1e-3
    )


def test_an_empty_frame_has_nothing() -> None:
    shares = two_squares(shared=True)(torch.zeros(2, 3, 16, 24), torch.full((2, 16, 24), 1e-5))
    assert shares.shape == (2, 2, 16, 24) and not shares.any()


def test_nothing_in_the_foreground_is_refused() -> None:
    film = draw([Square(RED, places(0))])
    with pytest.raises(ValueError, match="nothing differs from the background"):
        propose_segments(
            film.images, torch.zeros_like(film.foreground), 2, np.random.default_rng(0)
        )


@pytest.mark.parametrize(("side", "steps"), [(1, 1), (1, 120), (2, 120)])
def test_a_single_speck_is_one_thing(side: int, steps: int) -> None:
    film = draw([Square(RED, places(0, steps=steps), side)])
    proposals = look(film)
    assert proposals.count == 1
    assert shares_of(proposals, film).tolist() == [[1.0]]


def three_things() -> Sequence[Square]:
    return [Square(RED, places(0)), Square(CYAN, places(1)), Square(BLUE, places(2), side=5)]


def test_the_same_seed_finds_the_same() -> None:
    film = white_fingers_and_board()
    one, other = look(film, seed=3), look(film, seed=3)
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


@pytest.mark.parametrize("seed", range(4))
def test_any_seed_finds_the_things_of_an_easy_scene(seed: int) -> None:
    film = draw(three_things())
    assert holders(look(film, wanted=3, seed=seed), film) == [0, 1, 2]


def waving_hands(steps: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images (B, 3, 64, 64) of a red hand, whose solid forearm and thin fingers point anywhere and
    bend, and of a solid cyan box that rests but for one frame in ten; labels (B, 64, 64): 1
    forearm, 2 fingers, 3 box; and what moved (B, 64, 64)."""
    rng = np.random.default_rng(0)
    labels = np.zeros((steps, 64, 64), dtype=np.int64)
    box = np.array([4, 4])
    for image in labels:
        turn = rng.integers(4)
        y, x, bend = *rng.integers(2, 20, 2), rng.integers(-3, 4)
        canvas = np.zeros((44, 44), dtype=np.int64)
        canvas[y + 12 : y + 24, x + 8 : x + 17] = 1
        for finger in range(4):
            canvas[y + 2 : y + 12, x + 8 + bend + 3 * finger] = 2
        image[20:, 20:] = np.rot90(canvas, turn)
        box = rng.integers(2, 12, 2) if rng.random() < 0.1 else box
        image[box[0] : box[0] + 6, box[1] : box[1] + 6] = 3
    colours = torch.tensor([[0, 0, 0], RED, RED, CYAN]) / 255
    moved = np.concatenate([labels[:1] > 0, labels[1:] != labels[:-1]])
    return (
        colours[torch.from_numpy(labels)].permute(0, 3, 1, 2),
        torch.from_numpy(labels),
        torch.from_numpy(moved),
    )


def test_what_moves_most_of_the_time_is_split_in_two() -> None:
    images, labels, moved = waving_hands(120)
    proposals = propose_segments(
        images, labels > 0, 2, np.random.default_rng(0), splits=1, moved=moved
    )
    shares = proposals(images, (labels > 0).float())
    assert proposals.count == 3
    torch.testing.assert_close(shares.sum(dim=1), (labels > 0).float())
    both = torch.stack(
        [(shares * (labels == label).unsqueeze(1)).sum(dim=(0, 2, 3)) for label in (1, 2, 3)]
    )
    iou = both / (
        torch.stack([(labels == label).sum() for label in (1, 2, 3)]).unsqueeze(1)
        + shares.sum(dim=(0, 2, 3))
        - both
    )
    assert sorted(iou.argmax(dim=1).tolist()) == [0, 1, 2]
    assert iou.max(dim=1).values.min() > 0.8, iou


def test_without_a_split_a_thing_of_one_colour_is_whole() -> None:
    images, labels, moved = waving_hands(60)
    assert propose_segments(images, labels > 0, 2, np.random.default_rng(0), moved=moved).count == 2


def test_specks_go_to_what_they_lie_on() -> None:
    """A pixel of a board's brown in the middle of a handle of a lighter one, far from the board."""
    board, handle = places(0, x=(0, 22), y=(0, 8)), places(1, x=(0, 22), y=(16, 26))
    brown, light = (100, 40, 0), (120, 55, 10)
    film = draw([Square(brown, board, side=6), Square(light, handle, side=5)])
    proposals = look(film)
    images, foreground = film.images.clone(), film.foreground.float()
    frame, (x, y) = torch.arange(len(handle)), torch.from_numpy(handle).T + 2
    images[frame, :, y, x] = torch.tensor(brown) / 255
    holder = proposals(film.images, foreground)[frame, :, y, x].argmax(dim=1)
    assert (proposals(images, foreground)[frame, :, y, x].argmax(dim=1) == holder).all()
    proposals.config = replace(DEFAULTS, speck_distance=0.0)
    assert (proposals(images, foreground)[frame, :, y, x].argmax(dim=1) != holder).all(), (
        "else there is nothing to mend"
    )


@pytest.mark.parametrize("jitter", [0, 4])
def test_what_is_joined_rigidly_is_one_thing_whatever_its_colours(jitter: int) -> None:
    """A red hoop before a white board; a hoop that slides along its board is another thing."""
    board = places(0, x=(0, 20), y=(0, 20))
    hoop = (
        board
        + [0, 6]
        + np.random.default_rng(2).integers(-jitter, jitter + 1, (len(board), 1)) * [1, 0]
    )
    film = draw(
        [
            Square(WHITE, board, side=6),
            Square(RED, np.maximum(hoop, 0), side=6),
            Square(CYAN, places(1), side=3),
        ]
    )
    assert len(set(holders(look(film, wanted=1), film)[:2])) == (2 if jitter else 1)


def test_unseen_are_colours_far_from_those_of_all_clusters() -> None:
    torch.manual_seed(0)
    images = torch.rand(3, 3, 16, 16)
    proposals = SegmentProposals(
        colours_of(torch.rand(1, 3, 1, 4))[0, :, 0].T, torch.zeros(4, dtype=torch.int64), 1
    )
    proposals.tabulate_unseen()
    apart = torch.cdist(colours_of(images).permute(0, 2, 3, 1), proposals.codebook).amin(dim=-1)
    least = DEFAULTS.unseen_distance
    clear = (apart - least).abs() > 0.03  # it is told on a grid of colours
    assert torch.equal(proposals.is_unseen(images)[clear], (apart > least)[clear])
    assert 0.1 < proposals.is_unseen(images).float().mean() < 0.9
    other = SegmentProposals(torch.rand(4, 3), torch.zeros(4, dtype=torch.int64), 1)
    other.load_state_dict(proposals.state_dict())
    assert torch.equal(other.is_unseen(images), proposals.is_unseen(images)), (
        "loaded with the colours"
    )


def test_things_of_one_colour_that_move_apart_are_twins() -> None:
    left, right = places(1, x=(0, 12)), places(2, x=(16, 28))
    film = draw([Square(RED, places(0)), Square(CYAN, left), Square(CYAN, right)])
    proposals = look(film, wanted=3)
    assert proposals.alike == [[1, 2]]
    assert holders(proposals, film) == [0, 1, 2]


def test_twins_are_not_split_however_much_they_move() -> None:
    squares = [Square(RED, places(0)), Square(CYAN, places(1)), Square(CYAN, places(2))]
    film = draw(squares)
    codebook = colours_of(torch.tensor([RED, CYAN]).view(2, 3, 1, 1) / 255).view(2, 3)
    proposals = SegmentProposals(codebook, torch.tensor([0, 1]), 2, splits=1, twins=[2])
    for most in ([0], [1, 2]):  # what moves most
        moved = torch.isin(film.squares, torch.tensor(most))
        proposals.fit_splits(film.images, film.foreground.float(), moved)
        assert [int(split.segment) for split in proposals._splits()] == [0]


def cyan_twins(first: NDArray[np.int64], second: NDArray[np.int64]) -> tuple[torch.Tensor, Film]:
    """The shares of twins, squares of 4 x 4 pixels on these paths, and their film."""
    film = draw([Square(CYAN, first), Square(CYAN, second)])
    proposals = SegmentProposals(
        colours_of(torch.tensor([CYAN]).view(1, 3, 1, 1) / 255).view(1, 3),
        torch.tensor([0]),
        1,
        twins=[2],
    )
    cast(TwinSplit, proposals.twins[0]).size.fill_(16.0)
    shares, latest = proposals(film.images, film.foreground.float()), None
    followed = []
    for frame in shares:
        own, latest = proposals.follow(frame.unsqueeze(0), latest)
        followed.append(own)
    assert torch.equal(torch.cat(followed).sum(dim=1), shares.sum(dim=1))
    return torch.cat(followed), film


def overlap(shares: torch.Tensor, film: Film) -> torch.Tensor:
    """IoU (T, 2) of each twin with the square of its number."""
    squares = torch.stack([film.squares == 0, film.squares == 1], dim=1).float()
    both = (shares * squares).sum(dim=(2, 3))
    return both / (shares.sum(dim=(2, 3)) + squares.sum(dim=(2, 3)) - both)


@pytest.mark.parametrize("offset", [(4, 0), (0, 4), (4, 2), (3, 4), (4, 4)])
def test_twins_that_touch_stay_two(offset: tuple[int, int]) -> None:
    path = places(0, x=(0, 24), y=(0, 24), steps=1)
    assert overlap(*cyan_twins(path, path + offset)).min() >= 0.75


def test_twins_keep_their_number_when_they_pass_each_other() -> None:
    time = np.arange(25)
    right = np.stack([time, 8 + 0 * time], axis=1)
    left = np.stack([24 - time, 12 + 0 * time], axis=1)
    assert overlap(*cyan_twins(right, left)).min() >= 0.75


def test_a_twin_out_of_sight_has_nothing_and_comes_back_under_its_number() -> None:
    first = np.stack([4 + np.arange(20), np.full(20, 4)], axis=1)
    second = np.full((20, 2), [8, 20])
    second[5:15] = SIZE  # beyond the picture
    shares, film = cyan_twins(first, second)
    assert torch.equal(
        shares.sum(dim=(2, 3)),
        torch.tensor([[16.0, 0.0 if 5 <= t < 15 else 16.0] for t in range(20)]),
    )
    assert overlap(shares, film).nan_to_num(1.0).min() == 1.0
