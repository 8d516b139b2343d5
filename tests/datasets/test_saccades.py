"""The simulated sensor: an event says what the moved image did."""

import numpy as np
import pytest
import torch

from nit_snn.datasets import load, saccades
from nit_snn.datasets.saccades import DARK


def test_shape_type_and_what_is_seen() -> None:
    images = load("mnist", "")[0][:20]
    events = saccades(images)
    assert events.shape == (20, 18, 2, 28, 28) and events.dtype == torch.uint8
    assert events.max() == 1 and not (events[:, :, 0] & events[:, :, 1]).any()
    share = events.float().mean()
    assert 0.01 < share < 0.2
    assert (events.sum((1, 2, 3, 4)) > 50).all()


def test_nothing_moves_without_saccades_and_on_an_even_wall() -> None:
    images = load("mnist", "")[0][:5]
    assert not saccades(images, reach=0.0).any()
    wall = torch.full((1, 20, 20), 77, dtype=torch.uint8)
    assert not saccades(wall, reach=2.0)[:, :, :, 4:-4, 4:-4].any()


def test_events_follow_the_logarithm() -> None:
    """ON less OFF events, times the threshold, stay below it from the log-intensity's change."""
    images = torch.zeros(1, 12, 12, dtype=torch.uint8)
    images[0, :, 6:] = 200  # an edge; small steps, so that no pixel crosses two thresholds at once
    threshold = 0.25
    events = saccades(images, steps=600, reach=3.0, threshold=threshold)[0].double()
    told = threshold * (events[:, 1] - events[:, 0]).cumsum(0)
    corners = np.linspace(0, 3, 601)[1:]
    x = np.interp(corners, [0, 1, 2, 3], [0, 1.5, 3, 0])
    for step, place in list(enumerate(x))[::7]:
        for column in range(3, 7):
            seen = np.interp(column + place, [5, 6], [0, 200 / 255])
            change = np.log(seen + DARK) - np.log(DARK if column < 6 else 200 / 255 + DARK)
            assert abs(told[step, 4, column] - change) < threshold + 1e-6


def test_the_eye_comes_back() -> None:
    """At the end each pixel sees what it saw, so its ON and OFF events differ by one at most."""
    events = saccades(load("mnist", "")[0][:5], steps=300).long().sum(1)
    inner = (events[:, 1] - events[:, 0])[:, 4:-4, 4:-4]
    assert (inner.abs() <= 1).float().mean() > 0.99


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "divisible by 3"),
        ({"steps": 10}, "divisible by 3"),
        ({"reach": -1.0}, "reach must be"),
        ({"reach": float("inf")}, "reach must be"),
        ({"threshold": 0.0}, "threshold must be"),
        ({"threshold": float("nan")}, "threshold must be"),
    ],
)
def test_impossible_sensors_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        saccades(torch.zeros(1, 5, 5, dtype=torch.uint8), **options)


def test_impossible_images_are_refused() -> None:
    with pytest.raises(TypeError, match=r"uint8, got torch\.float32"):
        saccades(torch.zeros(1, 5, 5))
    with pytest.raises(ValueError, match=r"got \(5, 5\)"):
        saccades(torch.zeros(5, 5, dtype=torch.uint8))
