"""Is a picture drawn in the new style? A linear classifier on a few plain features, trained on real pictures.

The features say how a picture is drawn and little of what it shows: how dark the rim of the drawn shape is
(OpenMoji draws one black line around everything), how much of it is black, how flat its areas are, how
bright and how saturated it is. Trained on real pictures of other concepts; its accuracy on real pictures
of the concepts in question is stated first, since below 97 % its verdict on drawn ones proves nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn import functional

#: A real picture counts as proof only if the classifier is right on at least so many.
NEEDED_ACCURACY = 0.97


@dataclass(frozen=True)
class StyleClassifier:
    """Says "new style" or not. ``accuracy``: on real pictures of concepts that it was not trained on."""

    classifier: Pipeline
    accuracy: float

    def is_new(self, pixels: Tensor) -> Tensor:
        """bool (n,) for uint8 pictures (n, 3, height, width)."""
        return torch.from_numpy(self.classifier.predict(features(pixels).numpy())) == 1


def train(base: Tensor, new: Tensor, test_base: Tensor, test_new: Tensor) -> StyleClassifier:
    """From real pictures of the base styles and of the new one, uint8 (n, 3, height, width) each.

    Raises ValueError where the classifier is wrong on too many of the test pictures.
    """
    classifier = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=2000))
    labels = torch.cat([torch.zeros(2 * len(base)), torch.ones(2 * len(new))])
    # Once as they are and once blurred: a drawn picture may be soft, and softness is no style.
    examples = torch.cat([base, soften(base), new, soften(new)])
    classifier.fit(features(examples).numpy(), labels.numpy())
    right_base = classifier.predict(features(test_base).numpy()) == 0
    right_new = classifier.predict(features(test_new).numpy()) == 1
    accuracy = float(right_base.mean() + right_new.mean()) / 2
    if accuracy < NEEDED_ACCURACY:
        raise ValueError(f"right on {accuracy:.1%} of real pictures: too few to judge a style by")
    return StyleClassifier(classifier, accuracy)


def features(pixels: Tensor) -> Tensor:
    """uint8 (n, 3, height, width) to (n, 16)."""
    colours = pixels.float() / 255
    light = colours.mean(dim=1, keepdim=True)
    shape = drawn_shape(colours)
    rim = shape - erode(shape, 1)
    inside = erode(shape, 3)
    spread = colours.amax(dim=1, keepdim=True) - colours.amin(dim=1, keepdim=True)
    down, across = light.diff(dim=2).abs(), light.diff(dim=3).abs()
    slope = functional.pad(down, (0, 0, 0, 1)) + functional.pad(across, (0, 1))
    black = (colours.amax(dim=1, keepdim=True) < 0.3).float()
    measures = [
        mean_over(light, rim),
        mean_over(black, rim),
        mean_over((light < 0.45).float(), rim),
        mean_over(spread, rim),
        mean_over(black, shape),
        mean_over(light, inside),
        mean_over(black, inside),
        mean_over(spread, inside),
        mean_over((slope < 0.01).float(), inside),
        mean_over(slope, inside),
        mean_over((slope > 0.3).float(), shape),
        mean_over((light > 0.97).float(), inside),
        mean_over((spread > 0.5).float(), inside),
        shape.mean(dim=(1, 2, 3)),
        mean_over(light, shape) - mean_over(light, rim),
        mean_over(spread, shape) - mean_over(spread, rim),
    ]
    return torch.stack(measures, dim=1)


def drawn_shape(colours: Tensor) -> Tensor:
    """1 where something is drawn, and in the holes that it encloses: (n, 1, height, width).

    Background is the white that touches the border or hangs together with such.
    """
    drawn = (colours.amin(dim=1) <= 0.9).numpy()
    filled = np.stack([ndimage.binary_fill_holes(picture) for picture in drawn])
    return torch.from_numpy(filled).float().unsqueeze(1)


def erode(shape: Tensor, width: int) -> Tensor:
    """The shape without its outermost pixels."""
    return 1 - functional.max_pool2d(1 - shape, 2 * width + 1, stride=1, padding=width)


def mean_over(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of the values where the mask is one, picture by picture: (n,)."""
    return (values * mask).sum(dim=(1, 2, 3)) / mask.sum(dim=(1, 2, 3)).clamp(min=1)


def soften(pixels: Tensor) -> Tensor:
    """A slight blur: each pixel half itself, half the mean of its 3 x 3 neighbourhood."""
    padded = functional.pad(pixels.float(), (1, 1, 1, 1), mode="replicate")
    return ((pixels.float() + functional.avg_pool2d(padded, 3, stride=1)) / 2).round().to(torch.uint8)
